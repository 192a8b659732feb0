"""The cost of a recipe while training: time over plain steps and over a plain Trainer, and memory over the weights.

    python benchmarks/overhead.py --model path/to/all-MiniLM-L6-v2 --model bert-base --steps 30
    python benchmarks/overhead.py --model bert-base --shape 8x64 --precision bf16 --recipe ste --profile --trainer

Two copies of a model take steps in turn on the same batch, one plain and one attached to an engine, so that other load
on the machine slows both alike. A step is forward, backward, clipping, `optimizer.step()` and `zero_grad()`; nothing
is logged. `bert-base` is made by config, with random weights; anything else is loaded with `from_pretrained`.
"""

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import nxm_hf
from nxm_hf import recipes

HEADINGS = (
    *("model", "shape", "precision", "recipe"),
    *("plain ms", "with ms", "overhead", "in step() ms", "state", "deployed", "metrics()", "Trainer"),
)
WARMUP = 3  # steps that are not counted


def load(name: str) -> PreTrainedModel:
    """Return the model of a directory, or a BERT-base of random weights.

    Args:
        name: The directory, or "bert-base".
    """
    head: dict[str, Any] = {"num_labels": 2, "problem_type": "single_label_classification"}
    if name == "bert-base":
        return BertForSequenceClassification(BertConfig(**head))
    return AutoModelForSequenceClassification.from_pretrained(name, dtype=torch.float32, **head)


def make_batch(model: PreTrainedModel, shape: str) -> dict[str, torch.Tensor]:
    """Return random tokens with labels.

    Args:
        model: The model, for its vocabulary.
        shape: Rows and tokens, such as 16x128.
    """
    rows, length = map(int, shape.split("x"))
    ids = torch.randint(0, model.config.vocab_size, (rows, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(rows) % 2}


class Side:
    """A model and its optimizer, in a plain training loop."""

    def __init__(self, model: nn.Module, bf16: bool):
        self.model, self.bf16 = model.train(), bf16
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.01, fused=True)

    def step(self, batch: dict[str, torch.Tensor]) -> tuple[float, float]:
        """Take a training step.

        Args:
            batch: The inputs and labels.

        Returns:
            The seconds of the whole step, and of `optimizer.step()` alone.
        """
        begin = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = self.model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        stepping = time.perf_counter()
        self.optimizer.step()
        stepped = time.perf_counter()
        self.optimizer.zero_grad()
        return time.perf_counter() - begin, stepped - stepping


def in_turns(sides: list[Side], batch: dict[str, torch.Tensor], steps: int) -> list[list[tuple[float, float]]]:
    """Return the times of each side's steps.

    Args:
        sides: Two models; the one that goes first changes from step to step.
        batch: The inputs and labels.
        steps: How many steps count.
    """
    times: list[list[tuple[float, float]]] = [[] for _ in sides]
    for number in range(WARMUP + steps):
        for i in (0, 1) if number % 2 else (1, 0):
            times[i].append(sides[i].step(batch))
    return [side[WARMUP:] for side in times]


def live_bytes() -> int:
    """Return the bytes of all tensors that Python can reach; shared memory counts once."""
    gc.collect()
    storages = [x.untyped_storage() for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def median_time(act: Callable[[], object], times: int = 5) -> float:
    """Return the median seconds of a call.

    Args:
        act: What to call.
        times: How often.
    """
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def measure(model: PreTrainedModel, shape: str, precision: str, recipe: str, options: argparse.Namespace) -> list[str]:
    """Return a row of the table, without the name of the model.

    Args:
        model: The model.
        shape: The shape of a batch.
        precision: "fp32" or "bf16".
        recipe: The recipe.
        options: The options of the command line.
    """
    plain, sparse = (Side(deepcopy(model), precision == "bf16") for _ in range(2))
    batch, total = make_batch(model, shape), WARMUP + options.steps
    for side in (plain, sparse):
        side.step(batch)  # makes the optimizer's own state, which is not counted
    before = live_bytes()
    engine = nxm_hf.attach(sparse.model, sparse.optimizer, recipe, total_steps=total + WARMUP)
    state = live_bytes() - before
    with engine.deployed():
        deployed = live_bytes() - before
    weights = sum(target.layer.weight.nbytes for target in engine.plan.targets)
    times = in_turns([plain, sparse], batch, options.steps)
    (plain_step, plain_optimizer), (sparse_step, sparse_optimizer) = (
        [statistics.median(column) for column in zip(*side, strict=True)] for side in times
    )
    metrics = median_time(engine.metrics)
    if options.profile:
        print_profile(sparse, batch)
    trainers = through_trainers(model, batch, precision, recipe, options) if options.trainer else "-"
    return [
        shape,
        precision,
        recipe,
        f"{plain_step * 1e3:.1f}",
        f"{sparse_step * 1e3:.1f}",
        f"{sparse_step / plain_step - 1:+.1%}",
        f"{(sparse_optimizer - plain_optimizer) * 1e3:+.1f}",
        *(f"{size / weights:.2f}x" if weights else "-" for size in (state, deployed)),
        f"{metrics / sparse_step:.1%}",
        trainers,
    ]


def print_profile(side: Side, batch: dict[str, torch.Tensor]) -> None:
    """Print where the time of one `optimizer.step()` with its hooks goes.

    Args:
        side: The model and its optimizer.
        batch: The inputs and labels.
    """
    step, profiler = side.optimizer.step, profile(activities=[ProfilerActivity.CPU])

    def profiled() -> None:
        with profiler:
            step()

    side.optimizer.step = profiled  # type: ignore[method-assign, assignment]  # for one step
    try:
        side.step(batch)
    finally:
        side.optimizer.step = step  # type: ignore[method-assign]
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40))


class StepTimes(TrainerCallback):
    """Records the seconds of each training step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.begin = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(time.perf_counter() - self.begin)


def through_trainers(
    model: PreTrainedModel, batch: dict[str, torch.Tensor], precision: str, recipe: str, options: argparse.Namespace
) -> str:
    """Return the overhead of NxMTrainer over Trainer, which train in turns.

    Args:
        model: The model.
        batch: Its rows are the training data.
        precision: "fp32" or "bf16".
        recipe: The recipe.
        options: The options of the command line.
    """
    rows = [{name: values[i] for name, values in batch.items()} for i in range(len(batch["labels"]))]
    times: dict[bool, list[float]] = {True: [], False: []}
    for ours in (True, False, False, True):
        watch = StepTimes()
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                max_steps=WARMUP + options.steps // 2,
                save_strategy="no",
                use_cpu=True,
                per_device_train_batch_size=len(rows),
                bf16=precision == "bf16",
                disable_tqdm=True,
                logging_steps=10**6,
            )
            kwargs: dict[str, Any] = {"model": deepcopy(model), "args": arguments}
            kwargs |= {"train_dataset": rows, "callbacks": [watch]}
            trainer = nxm_hf.NxMTrainer(sparsity=recipe, **kwargs) if ours else Trainer(**kwargs)
            trainer.train()
        times[ours] += watch.times[WARMUP:]
    return f"{statistics.median(times[True]) / statistics.median(times[False]) - 1:+.1%}"


def parse() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", action="append", help='directory of a model, or "bert-base"; more than one may be given'
    )
    parser.add_argument("--shape", nargs="+", default=["16x128", "8x64"], help="rows x tokens of a batch")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--recipe", nargs="+", default=recipes.names())
    parser.add_argument("--steps", type=int, default=30, help="steps of each side that count")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--trainer", action="store_true", help="measure Trainer and NxMTrainer too")
    parser.add_argument("--profile", action="store_true", help="print where the time of optimizer.step() goes")
    return parser.parse_args()


def main() -> None:
    """Print each row of the table as soon as it is measured."""
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print("| " + " | ".join(HEADINGS) + " |")
    print("|" + "---|" * len(HEADINGS))
    for name in options.model or ["bert-base"]:
        model = load(name)
        for shape in options.shape:
            for precision in options.precision:
                for recipe in options.recipe:
                    row = measure(model, shape, precision, recipe, options)
                    print("| " + " | ".join([name.rstrip("/").split("/")[-1], *row]) + " |", flush=True)


if __name__ == "__main__":
    main()
