"""`run_glue.py --task_name demo`: dense, pruned and sparse training on made-up sentence pairs, without a network.

The pairs have the form of a GLUE task. Every word has a hidden value; the label says whether the values of the first
sentence add up to more than those of the second. A small BERT is first trained on plain sentences, which stands for
pre-training. Then it is fine-tuned on sentences with the word "not", which negates the value of the word after it:
dense, with `asp`, and with the recipe that was asked for. Each training is a command of `run_glue.py`, and is printed.

`compare.py --tasks demo` in benchmarks/glue compares recipes on the same model and rows.
"""

import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from run_glue import Run, evaluate_splits, make_trainer, read_options, train
from torch import nn
from transformers import AutoModelForSequenceClassification

from nxm_hf import NxMTrainer
from nxm_hf.cli.main import main as nxm
from nxm_hf.demo.task import make_config, make_pairs, make_tokenizer
from nxm_hf.methods import PHASES
from nxm_hf.text import table

TRAIN, HELD_OUT, STEPS = 16384, 2048, 800
LEARNING_RATE = 1e-3
SHARED_OPTIONS = {
    "--warmup_steps": 0.1,
    "--per_device_train_batch_size": 32,
    "--per_device_eval_batch_size": 256,
    "--use_cpu": True,
}
TRAIN_AND_EVALUATE = {"--learning_rate": LEARNING_RATE, "--save_strategy": "no", "--do_train": True, "--do_eval": True}
RECIPE_PHASE = PHASES.index("recipe")
Options = Mapping[str, Any]

# -- data and model -----------------------------------------------------------------------------------------------


def write_rows(folder: Path) -> None:
    """Write plain sentences and those with "not", with a file for each split."""
    for name, negation in (("plain", False), ("with-not", True)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for split, count, seed in (("train", TRAIN, 1 + negation), ("validation", HELD_OUT, 11 + negation)):
            rows = make_pairs(count, seed, negation)
            (folder / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def write_shape(folder: Path) -> None:
    """Write the tokenizer, and the config of a BERT of two layers without weights."""
    make_tokenizer().save_pretrained(folder)
    make_config().save_pretrained(folder)


# -- command lines of run_glue.py ---------------------------------------------------------------------------------


def command_line(options: Options) -> list[str]:
    """Return options as the words of a command line."""
    return [str(word) for pair in options.items() for word in pair]


def start_options(folder: Path, steps: int) -> dict[str, Any]:
    """Return the options of the training that stands for pre-training."""
    return {
        "--model_name_or_path": folder / "shape",
        "--from_scratch": True,
        "--dataset_name": folder / "rows/plain",
        "--recipe": "dense",
        "--max_steps": max(steps // 2, 1),
    }


def trainings(folder: Path, run: Run) -> Iterator[tuple[str, list[str]]]:
    """Yield the trainings of the demo: the name of each, and its command line."""
    steps = run.training.max_steps if run.training.max_steps > 0 else STEPS
    shared = {
        **SHARED_OPTIONS,
        **TRAIN_AND_EVALUATE,
        "--logging_steps": max(steps // 4, 1),
        "--seed": run.training.seed,
        "--disable_tqdm": run.training.disable_tqdm or not sys.stderr.isatty(),
        "--eval_on_start": True,
    }
    start = {"--model_name_or_path": folder / "start", "--dataset_name": folder / "rows/with-not", "--max_steps": steps}
    pattern = _as_text(run.sparsity.pattern)
    recipe = {
        f"--{name}": _as_text(value)
        for name in ("recipe", "settings", "warmup", "settle")
        if (value := getattr(run.sparsity, name))
    }
    options_by_name: dict[str, dict[str, Any]] = {
        "start": start_options(folder, steps),
        "dense": {**start, "--recipe": "dense"},
        "asp": {**start, "--recipe": "asp", "--pattern": pattern},
        str(run.sparsity.recipe): {**start, **recipe, "--pattern": pattern},
    }
    for name, options in options_by_name.items():
        yield name, command_line({**options, **shared, "--output_dir": folder / name})


def _as_text(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict) else value


# -- running ------------------------------------------------------------------------------------------------------


def fine_tune(arguments: list[str]) -> tuple[NxMTrainer, float]:
    """Print and run one command of `run_glue.py`."""
    print("\n$ python run_glue.py", shlex.join(arguments), flush=True)
    began = time.perf_counter()
    run = read_options(arguments)
    trainer, task, rows = make_trainer(run)
    train(run, trainer)
    evaluate_splits(run, trainer, task, rows)
    return trainer, time.perf_counter() - began


def table_row(name: str, trainer: NxMTrainer, seconds: float) -> tuple[str, ...]:
    """Return a row of the table: the evaluation before and after training."""
    history = trainer.state.log_history
    before, *_, after = (record for record in history if "eval_loss" in record)
    # The last record before the mask was frozen: from then on the similarity is 1.
    similarity = [record["nxm/mask_similarity"] for record in history if record.get("nxm/phase") == RECIPE_PHASE]
    assert trainer.model is not None
    return (
        name,
        *(f"{before[key]:.3f} -> {after[key]:.3f}" for key in ("eval_accuracy", "eval_loss")),
        f"{density(trainer.model):.4f}",
        f"{similarity[-1]:.4f}" if similarity else "-",
        f"{seconds:.0f}",
    )


def density(model: nn.Module) -> float:
    """Return the fraction of non-zeros in the layers that nxm_hf prunes."""
    weights = [p for name, p in model.named_parameters() if ".layer." in name and p.ndim == 2]
    return sum(int(p.count_nonzero()) for p in weights) / sum(p.numel() for p in weights)


def run_demo(run: Run) -> int:
    """Run all trainings, print the table, and verify the sparse model."""
    folder = run.output_dir
    torch.set_num_threads(1)  # with tensors this small, threads only contend
    write_rows(folder / "rows")
    write_shape(folder / "shape")
    rows = []
    for name, arguments in trainings(folder, run):
        trainer, seconds = fine_tune(arguments)
        if name != "start":
            rows.append(table_row(name if name == "dense" else f"{name} {run.sparsity.pattern}", trainer, seconds))
    head = ("recipe", "accuracy", "loss", "density", "mask similarity", "seconds")
    print(f"\nBefore -> after fine-tuning, on {HELD_OUT} pairs that were not trained on, seed {run.training.seed}:\n")
    print(table(head, rows))
    print("\nBefore: the pre-trained model as it would be deployed at step 0; sparse ones are pruned at once.")
    return check_saved(folder / name, trainer)


def check_saved(folder: Path, trainer: NxMTrainer) -> int:
    """Load a saved model with transformers alone, compare its weights, and verify its zeros."""
    loaded = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    assert trainer.model is not None
    same = all(torch.equal(tensor, loaded[key]) for key, tensor in trainer.model.state_dict().items())
    outcome = "the same weights" if same else "OTHER weights"
    print(f"\nSaved to {folder}; loaded again with transformers alone: {outcome}.")
    print(f"\n$ nxm verify {shlex.quote(str(folder))}")
    return nxm(["verify", str(folder)]) or int(not same)


# -- for compare.py -----------------------------------------------------------------------------------------------


def prepare(folder: Path) -> dict[str, Any]:
    """Write rows and shapes, if they are not there, and return the options that all trials share."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # with tensors this small, threads only contend
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "start" / "config.json").exists():
            write_rows(folder / "rows")
            write_shape(folder / "shape")
            write_shape(folder / "start")
    return {
        "--model_name_or_path": folder / "start",
        "--dataset_name": folder / "rows/with-not",
        "--max_steps": STEPS,
        "--logging_steps": 20,
        "--disable_tqdm": True,
        **SHARED_OPTIONS,
    }


def train_start(folder: Path) -> None:
    """Train the model that all trials start from, if that was not done."""
    output = {"--logging_steps": STEPS, "--disable_tqdm": True, "--output_dir": folder / "start"}
    with FileLock(folder / "lock"):
        if not (folder / "start" / "all_results.json").exists():  # a training writes it last
            fine_tune(command_line({**start_options(folder, STEPS), **SHARED_OPTIONS, **TRAIN_AND_EVALUATE, **output}))
