"""What a save costs beside plain Trainer's: CPU time, wall time, and the peak of memory.

    python benchmarks/saves.py --where /tmp/saves
    python benchmarks/saves.py --where /dev/shm/saves --recipe asp ste "admm rho=0.001" --blocks 6

A BERT of random weights is trained for a few steps. Within the third step, and after the training, `save_model` of
NxMTrainer and of a plain Trainer take turns, each over its own last save. The first turn does not count. "ratio" is
that of the medians, and "by minima" that of the shortest. "peak" is the largest resident size while a checkpoint is
saved, minus that before, over the bytes of all weights. There is one for each checkpoint of the training.

The directory decides much. In a virtual machine that gives free memory back, new pages of a file may cost several times
as much CPU as pages that were just freed, whoever writes them. A file system in memory (/dev/shm) has no such noise.
"""

import argparse
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from benchmarks.overhead import config_of
from benchmarks.sharded_memory import Peak
from nxm_hf import NxMTrainer
from nxm_hf.storage.saving import bytes_of
from nxm_hf.text import table

STEPS = 6
HEADINGS = ("recipe", "save_model", "plain ms", "ours ms", "ratio", "by minima", "wall", "peak")


def make_model(given: argparse.Namespace) -> BertForSequenceClassification:
    """Return a BERT of random weights.

    Args:
        given: The settings of the command line.
    """
    sizes = dict(hidden_size=given.width, num_hidden_layers=given.blocks, intermediate_size=4 * given.width)
    return BertForSequenceClassification(BertConfig(**sizes, num_attention_heads=4, vocab_size=given.vocabulary))


class PeakTrainer(NxMTrainer):
    """Note the peak of memory of each checkpoint, in copies of the weights."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.peaks: list[float] = []

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with Peak() as peak:
            super()._save_checkpoint(*args, **kwargs)
        self.peaks.append(peak.most / bytes_of(self._plain_model))


class Turns(TrainerCallback):
    """Save by two Trainers in turns.

    Args:
        plain: A plain Trainer.
        given: The settings of the command line.
    """

    def __init__(self, plain: Trainer, given: argparse.Namespace):
        self.plain, self.given = plain, given
        self.ours: NxMTrainer | None = None
        self.rows: list[tuple[str, ...]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == STEPS // 2:
            self.take("in the training")

    def take(self, when: str) -> None:
        """Save in turns, and note a row of the table.

        Args:
            when: What the row says of its saves.
        """
        assert self.ours is not None
        sides = {"plain-model": self.plain, "sparse-model": self.ours}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for _ in range(self.given.rounds + 1):
            for name, trainer in sides.items():
                begin = time.process_time(), time.perf_counter()
                trainer.save_model(str(self.given.where / name))
                times[name].append((time.process_time() - begin[0], time.perf_counter() - begin[1]))
        (plain, plain_wall), (ours, wall) = (zip(*each[1:], strict=True) for each in times.values())
        medians = [statistics.median(each) for each in (plain, ours, plain_wall, wall)]
        numbers = (medians[1] / medians[0], min(ours) / min(plain), medians[3] / medians[2])
        self.rows.append((when, *(f"{1e3 * each:.0f}" for each in medians[:2]), *(f"{each:.2f}" for each in numbers)))


def measure(recipe: str, given: argparse.Namespace) -> list[tuple[str, ...]]:
    """Return the rows of one recipe.

    Args:
        recipe: The recipe, with its settings.
        given: The settings of the command line.
    """
    torch.manual_seed(0)
    ids = torch.randint(0, given.vocabulary, (8, 8))
    data: list[dict[str, Tensor]] = [{"input_ids": row, "labels": torch.tensor(1)} for row in ids]
    settings: dict[str, Any] = dict(max_steps=STEPS, per_device_train_batch_size=1, use_cpu=True, report_to=[])
    settings |= dict(save_strategy="steps", save_steps=2, disable_tqdm=True)
    arguments = [TrainingArguments(str(given.where / name), **settings) for name in ("plain", "sparse")]
    turns = Turns(Trainer(make_model(given), arguments[0], train_dataset=data), given)
    ours = PeakTrainer(
        make_model(given), arguments[1], train_dataset=data, callbacks=[turns], sparsity=config_of(recipe)
    )
    turns.ours = ours
    ours.train()
    turns.take("after the training")
    shutil.rmtree(given.where, ignore_errors=True)
    peaks = " ".join(f"{peak:.2f}" for peak in ours.peaks)
    return [(recipe, *row, peaks if row is turns.rows[0] else "") for row in turns.rows]


def main(arguments: list[str] | None = None) -> None:
    """Print the table.

    Args:
        arguments: The command line; by default that of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--where", type=Path, required=True, help="a directory to write into; it is removed")
    parser.add_argument("--recipe", nargs="+", default=["asp"], help="recipes, each with its settings")
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=30522)
    parser.add_argument("--rounds", type=int, default=9, help="saves of each side that count")
    given = parser.parse_args(arguments)
    if given.where.exists():
        parser.error(f"{given.where} is there already, and would be removed; name another place")
    torch.set_num_threads(1)
    print(table(HEADINGS, [row for recipe in given.recipe for row in measure(recipe, given)]))


if __name__ == "__main__":
    main()
