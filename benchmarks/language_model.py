"""Perplexity of a sparse language model: pruned without training, and fine-tuned by each recipe.

    python -m benchmarks.language_model --text train.parquet --held-out test.parquet --seeds 0 1 2 --output-dir out/lm
    python -m benchmarks.language_model --text train.txt --model facebook/opt-125m --context 2048 --output-dir out/opt

Without `--model`, a Llama-like model is trained from scratch, with a byte-pair tokenizer of the same text. Then its
copies are pruned by every method, and fine-tuned by every recipe for a share of those steps. The recipe `dense` is the
same fine-tuning without pruning. All of this is repeated for each seed, which draws the first weights and the order of
the text. Perplexity is that of `nxm_hf.perplexity` on held-out text, with windows that do not overlap.

What is finished lies in `cells/` of the output directory, and a run in `runs/`. The same command goes on where it was
stopped; `--render` prints the table of what there is. Learning rates were set once and not tuned.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from datasets import load_dataset
from tokenizers import ByteLevelBPETokenizer
from torch.utils.data import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from benchmarks.glue.comparison.published import published_rows
from benchmarks.glue.comparison.tables import format_number, table
from benchmarks.overhead import config_of
from nxm_hf import NxMTrainer, perplexity, prune, pruners, verify
from nxm_hf.pruning.text_rows import read_texts

PATTERNS = ("2:4", "4:8")
RECIPES = (
    "dense",
    "asp",
    "admm",
    "fade",
    "sr-ste",
    "ste",
    "mask-decay grad=ste",
    "asp scores=alps",
    "admm settle=0.15",
    "admm rho=quantile rho_schedule=geometric scores=fisher settle=0.3",
)
HELD_OUT = 10  # one row in this many, at the end of the text
END = "<|endoftext|>"
UNSEEN = ("output_dir", "seeds", "methods", "recipes", "patterns", "render")  # options that change no finished cell


class Sequences(Dataset):
    """A text as sequences of one length, for a causal language model.

    Args:
        ids: The tokens of the text.
        context: The tokens of a sequence; what is left at the end is not used.
    """

    def __init__(self, ids: Sequence[int], context: int):
        count = len(ids) // context
        self.rows = torch.tensor(ids[: count * context]).view(count, context)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


@dataclass(frozen=True)
class Cell:
    """One number of the table.

    Args:
        how: "trained" for the model that is pruned; "pruned" without training; or "tuned" by a recipe.
        name: The method or the recipe, with its settings.
        pattern: The pattern.
        seed: The seed.
    """

    how: str
    name: str
    pattern: str
    seed: int

    @property
    def slug(self) -> str:
        """Return a name for files."""
        text = f"{self.how}-{self.name}-{self.pattern}-{self.seed}"
        return "".join(letter if letter.isalnum() or letter in "-.=" else "_" for letter in text)


class Study:
    """The cells of a command: what is to be done, and what is finished.

    Args:
        options: The options of the command line.
    """

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.folder: Path = options.output_dir
        (self.folder / "cells").mkdir(parents=True, exist_ok=True)
        self._check_settings()

    def _check_settings(self) -> None:
        """Keep the options that change numbers, and raise if those of an earlier command were others."""
        file = self.folder / "settings.json"
        ours = {name: value for name, value in vars(self.options).items() if name not in UNSEEN}
        ours = json.loads(json.dumps(ours, default=str))
        theirs = {**ours, **(json.loads(file.read_text()) if file.exists() else {})}
        if changed := [name for name in ours if theirs[name] != ours[name]]:
            told = ", ".join(f"--{name.replace('_', '-')} {theirs[name]}" for name in changed)
            raise SystemExit(f"{self.folder} was made with {told}. Write that, or another --output-dir.")
        _write_json(file, ours)

    def cells(self, seed: int) -> Iterator[Cell]:
        """Yield the cells of a seed in the order in which they are computed.

        Args:
            seed: The seed.
        """
        yield Cell("trained", "dense", "dense", seed)
        if "dense" in self.options.recipes:
            yield Cell("tuned", "dense", "dense", seed)
        for pattern in self.options.patterns:
            yield from (Cell("pruned", method, pattern, seed) for method in self.options.methods)
            yield from (Cell("tuned", recipe, pattern, seed) for recipe in self.options.recipes if recipe != "dense")

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """Return what a finished cell measured.

        Args:
            cell: The cell.
        """
        file = self.folder / "cells" / f"{cell.slug}.json"
        return json.loads(file.read_text()) if file.exists() else None

    def run(self) -> None:
        """Compute the cells that are missing."""
        for seed in self.options.seeds:
            for cell in self.cells(seed):
                if self.result(cell) is None:
                    began = time.process_time()
                    model = self._model(cell)
                    found: dict[str, Any] = {**asdict(cell), "steps": self._steps(cell), **self._measure(model, cell)}
                    found["cpu_seconds"] = round(time.process_time() - began, 1)
                    _write_json(self.folder / "cells" / f"{cell.slug}.json", found)
                    print(f"{cell.slug}: perplexity {found['perplexity']:.2f}", flush=True)
                shutil.rmtree(self.folder / "runs" / cell.slug, ignore_errors=True)

    def _measure(self, model: PreTrainedModel, cell: Cell) -> dict[str, Any]:
        """Return the perplexity of a model, after a look at its pattern."""
        if cell.pattern != "dense" and not (checked := verify(model, cell.pattern)).ok:
            raise RuntimeError(f"{cell.slug} does not hold its pattern:\n{checked}")
        measured = perplexity(model, self.held_out, self.tokenizer, context=self.options.context)
        return {"perplexity": measured.perplexity, "loss": measured.loss, "tokens": measured.tokens}

    def _model(self, cell: Cell) -> PreTrainedModel:
        """Return the model of a cell, trained or pruned."""
        if cell.how == "trained":
            return self._trained(cell)
        model = self._dense(cell.seed)
        if cell.how == "tuned":
            return self._train(model, cell, self.options.tuning_rate)
        prune(
            model,
            cell.pattern,
            cell.name,
            None if cell.name == "magnitude" else self.train,
            self.tokenizer,
            samples=self.options.samples,
            length=self.options.context,
            pack=True,
            seed=cell.seed,
            report=False,
        )
        return model

    def _trained(self, cell: Cell) -> PreTrainedModel:
        """Return the dense model, which is trained and saved if none was given."""
        if self.options.model:
            return self._dense(cell.seed)
        torch.manual_seed(cell.seed)
        model: PreTrainedModel = LlamaForCausalLM(self._shape())
        print(f"a model of {sum(weight.numel() for weight in model.parameters()) / 1e6:.2f} M weights", flush=True)
        model = self._train(model, cell, self.options.learning_rate)
        model.save_pretrained(self.folder / f"dense-{cell.seed}")
        return model

    def _shape(self) -> LlamaConfig:
        width = self.options.width
        return LlamaConfig(
            vocab_size=len(self.tokenizer),
            hidden_size=width,
            intermediate_size=8 * width // 3 // 32 * 32 or 32,
            num_hidden_layers=self.options.layers,
            num_attention_heads=max(width // 32, 1),
            max_position_embeddings=self.options.context,
            tie_word_embeddings=True,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
        )

    def _dense(self, seed: int) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(
            self.options.model or self.folder / f"dense-{seed}", dtype=torch.float32
        )

    def _steps(self, cell: Cell) -> int:
        """Return the number of steps that a cell trains for."""
        if cell.how == "tuned":
            return max(round(self.options.steps * self.options.share), 1)
        return self.options.steps if cell.how == "trained" and not self.options.model else 0

    def _train(self, model: PreTrainedModel, cell: Cell, rate: float) -> PreTrainedModel:
        """Train a model by the recipe of a cell, from the last checkpoint if there is one."""
        folder, steps = self.folder / "runs" / cell.slug, self._steps(cell)
        args = TrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=self.options.batch_size,
            learning_rate=rate,
            warmup_steps=max(steps // 20, 1),
            lr_scheduler_type="cosine",
            weight_decay=self.options.weight_decay,
            save_steps=max(steps // 5, 1),
            save_total_limit=1,
            logging_steps=max(steps // 20, 1),
            report_to=[],
            seed=cell.seed,
            use_cpu=not torch.cuda.is_available(),
            disable_tqdm=True,
        )
        sparsity = config_of(cell.name)
        sparsity = sparsity if sparsity.is_dense else sparsity.replace(pattern=cell.pattern)
        trainer = NxMTrainer(model, args, train_dataset=self.sequences, sparsity=sparsity)
        trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.is_dir() else None)
        trained: Any = trainer.model
        return trained

    @cached_property
    def rows(self) -> list[str]:
        """Return the rows of the text, without empty ones."""
        return [row for source in self.options.text for row in read_texts(_source(source))]

    @property
    def train(self) -> list[str]:
        """Return the rows to train on."""
        return self.rows if self.options.held_out else self.rows[: -(len(self.rows) // HELD_OUT)]

    @property
    def held_out(self) -> str | list[str]:
        """Return the text that perplexity is of; a file is read as it is."""
        if self.options.held_out:
            return _source(self.options.held_out)
        return self.rows[-(len(self.rows) // HELD_OUT) :]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer of the model, or one that is trained on the rows to train on."""
        if self.options.model:
            return AutoTokenizer.from_pretrained(self.options.model)
        folder = self.folder / "tokenizer"
        if not folder.exists():
            trained = ByteLevelBPETokenizer()
            trained.train_from_iterator(self.train, self.options.vocabulary, special_tokens=[END], show_progress=False)
            inner: Any = trained
            made = PreTrainedTokenizerFast(tokenizer_object=inner._tokenizer, bos_token=END, eos_token=END)
            made.save_pretrained(folder.with_suffix(".part"))
            folder.with_suffix(".part").rename(folder)
        return AutoTokenizer.from_pretrained(folder)

    @cached_property
    def sequences(self) -> Sequences:
        """Return the sequences to train on."""
        ids = self.tokenizer("\n\n".join(self.train), verbose=False)["input_ids"]
        return Sequences(ids, self.options.context)

    def table(self) -> str:
        """Return a table in Markdown of what is finished: mean and standard deviation over seeds."""
        found: dict[tuple[str, str], dict[str, list[float]]] = {}
        for seed in self.options.seeds:
            for cell in self.cells(seed):
                result = self.result(cell)
                columns = found.setdefault((cell.how, cell.name), {})
                columns.setdefault(cell.pattern, []).extend([result["perplexity"]] if result else [])
        patterns = ("dense", *self.options.patterns)
        rows = [
            [how, f"`{name}`", *(_spread(columns.get(pattern, [])) for pattern in patterns)]
            for (how, name), columns in found.items()
        ]
        for row in published_rows(self.options.model or ""):
            numbers = row.get("perplexity", {})
            rows.append(
                ["published", row["row"], *(format_number(numbers.get(pattern), ".2f") for pattern in patterns)]
            )
        return table(["model", "method or recipe", *patterns], rows)


def _source(name: str) -> str | list[str]:
    """Return a file or Hub dataset by its name, or the texts of a split as in "name:configuration:split"."""
    if name.count(":") != 2 or Path(name).exists():
        return name
    dataset, configuration, split = name.split(":")
    return list(load_dataset(dataset, configuration, split=split)["text"])


def _spread(values: Sequence[float]) -> str:
    """Return a mean, with the standard deviation and the number of seeds if there are several."""
    if len(values) < 2:
        return format_number(values[0] if values else None, ".2f")
    return f"{fmean(values):.2f} ± {stdev(values):.2f} ({len(values)})"


def _write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a file that is there wholly or not at all."""
    beside = file.with_suffix(".part")
    beside.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(beside, file)


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options.

    Args:
        words: The words of the command line; by default those of this process.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--text", nargs="+", required=True, help="files, or splits on the Hub: name:configuration:split"
    )
    parser.add_argument("--held-out", help="the file that perplexity is of (default: the last tenth of the rows)")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--model", help="a causal language model to prune and fine-tune; none is trained then")
    parser.add_argument("--steps", type=int, default=1200, help="of training from scratch (default: %(default)s)")
    parser.add_argument("--share", type=float, default=0.2, help="of these steps, to fine-tune (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="from scratch (default: %(default)s)")
    parser.add_argument("--tuning-rate", type=float, default=3e-4, help="of fine-tuning (default: %(default)s)")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--context", type=int, default=128, help="tokens of a sequence (default: %(default)s)")
    parser.add_argument("--width", type=int, default=192, help="of the model (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--samples", type=int, default=128, help="sequences for pruning (default: %(default)s)")
    parser.add_argument("--patterns", nargs="+", default=PATTERNS)
    parser.add_argument("--methods", nargs="*", default=pruners.names(), help="without training (default: all)")
    parser.add_argument("--recipes", nargs="*", default=RECIPES, help='with settings, as in "admm settle=0.15"')
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--render", action="store_true", help="compute nothing; print the table of what there is")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Compute what is missing, and print the table.

    Args:
        words: The words of the command line; by default those of this process.
    """
    study = Study(parse_arguments(words))
    if not study.options.render:
        study.run()
    print(study.table())


if __name__ == "__main__":
    main()
