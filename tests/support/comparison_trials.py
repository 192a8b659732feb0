"""What tests of comparisons share: a tiny BERT and rows on disk, and finished trials that were never trained."""

import json
import random
import re
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from benchmarks.glue.comparison.command_line import parse_arguments
from benchmarks.glue.comparison.records import TRIALS_FOLDER, RecordFile, predictions_file
from benchmarks.glue.comparison.request import ComparisonRequest
from benchmarks.glue.comparison.statistics import metrics_of
from benchmarks.glue.comparison.trials import Trial
from benchmarks.glue.comparison.variants import read_grid, sweep_variants
from nxm_hf import NxMConfig
from tests.support.example_scripts import glue_data, glue_metric
from tests.support.models import make_bert

TASKS = glue_data.TASKS
POINT = (("learning_rate", "1e-4"),)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def write_model(folder: Path) -> Path:
    """Write a BERT of two layers with a tokenizer of 46 words."""
    words = [*SPECIAL, *(f"w{number}" for number in range(50 - len(SPECIAL)))]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **names).save_pretrained(folder)
    make_bert().save_pretrained(folder)
    return folder


def write_rows(folder: Path, task: str = "mrpc", count: int = 8) -> Path:
    """Write rows of a task, in a file for each split."""
    draw = random.Random(0)
    (folder / task).mkdir(parents=True)
    for split in ("train", "validation"):
        rows = [
            {**{text: f"w{draw.randrange(46)} w{draw.randrange(46)}" for text in TASKS[task].texts}, "label": row % 2}
            for row in range(count)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / task / f"{split}.jsonl").write_text(lines)
    return folder


# -- command lines ------------------------------------------------------------------------------------------------


def comparison_arguments(model: str, rows: str, folder: Path, *more: str) -> list[str]:
    """Return the command line of a comparison: asp on eight rows, in two steps."""
    source = ["--model_name_or_path", model, "--dataset_name", rows, "--output_dir", str(folder)]
    trials = ["--tasks", "mrpc", "--recipes", "asp", "--seeds", "0", "--max_steps", "2"]
    return [*source, *trials, "--use_cpu", "--report_to", "none", *more]


def make_request(*arguments: str) -> ComparisonRequest:
    """Return what a command line asks for, unchecked and without a model."""
    options, more = parse_arguments(arguments)
    variants = sweep_variants(options.recipes, options.sweep, more)
    grid = read_grid(options.grid or [])
    seeds = (options.seeds, options.search_seeds)
    return ComparisonRequest("m", options.tasks, variants, *seeds, tuple(more), grid, options.preset)


# -- finished trials ----------------------------------------------------------------------------------------------


def fake_labels(task: str, rows: int) -> list[float]:
    """Return labels, or scores, of made-up validation rows."""
    draw = random.Random(task)
    labels = TASKS[task].labels
    return [draw.randrange(len(labels)) if labels else round(draw.uniform(0, 5), 3) for _ in range(rows)]


def fake_record(trial: Trial, right: float, rows: int = 60) -> dict:
    """Return the record of a trial that is right about a fraction of its rows."""
    draw, truth = random.Random(f"{trial.name}{right}"), fake_labels(trial.task, rows)
    labels = TASKS[trial.task].labels
    wrong = (lambda label: (label + 1) % len(labels)) if labels else (lambda label: round(draw.uniform(0, 5), 3))
    predictions = [label if draw.random() < right else wrong(label) for label in truth]
    scores = glue_metric.scores(metrics_of(trial.task), np.asarray(predictions), np.asarray(truth))
    metrics = {f"eval_{name}": value for name, value in scores.items()}
    recall = {
        name: sum(a == b == label for a, b in zip(predictions, truth, strict=True)) / max(truth.count(label), 1)
        for label, name in enumerate(labels)
    }
    run = {"epoch": 2.0, "train_samples": 100, "train_runtime": 10.0, "train_steps_per_second": 2.5}
    return {
        "name": trial.name,
        **{name: getattr(trial, name) for name in ("task", "recipe", "seed", "grid", "hold_out", "model", "more")},
        "config": trial.config.to_dict() if trial.recipe != "dense" else NxMConfig("dense").to_dict(),
        "metrics": {**metrics, **run},
        "recall": recall,
        "majority": max((truth.count(label) / rows for label in range(len(labels))), default=None),
        "predictions": predictions,
        "mask_similarity": None if trial.config.is_dense else 0.9 + right / 20,
        "seconds": 10.0,
        "versions": {},
    }


def write_trials(folder: Path, records: list[dict], with_rows: bool = True) -> Path:
    """Write a folder of finished trials."""
    (folder / TRIALS_FOLDER).mkdir(parents=True, exist_ok=True)
    file = RecordFile(folder / "results.jsonl")
    for record in records:
        file.add(json.loads(json.dumps(record)))
        if with_rows:
            write_predictions(folder / TRIALS_FOLDER / record["name"], record)
    return folder


def write_predictions(folder: Path, record: dict) -> None:
    """Write the file of predictions that `run_glue.py` would have written."""
    folder.mkdir(exist_ok=True)
    labels, truth = TASKS[record["task"]].labels, fake_labels(record["task"], len(record["predictions"]))
    as_text = (lambda value: labels[value]) if labels else str
    pairs = zip(record["predictions"], truth, strict=True)
    lines = [f"{row}\t{as_text(predicted)}\t{as_text(true)}" for row, (predicted, true) in enumerate(pairs)]
    predictions_file(folder, record["task"]).write_text("\n".join(["index\tprediction\tlabel", *lines]) + "\n")


def write_comparison(folder: Path, model: str, seeds=(0, 1, 2), with_rows: bool = True) -> list[dict]:
    """Write four variants on two tasks; returns the records, with the numbers that a page is to show."""
    rights = {"dense": 0.95, "asp": 0.6, "admm rho=0.01": 0.8, "admm rho=0.01 teacher=dense": 0.85}
    records = [
        fake_record(Trial(task, recipe, seed, POINT, model=model), right)
        | ({"teacher": "t", "teacher_seconds": 5.0} if "teacher" in recipe else {})
        for task in ("mrpc", "stsb")
        for recipe, right in rights.items()
        for seed in seeds
    ]
    write_trials(folder, records, with_rows)
    return records


# -- pages --------------------------------------------------------------------------------------------------------


def table_rows(text: str, task: str, number: int) -> dict[str, list[str]]:
    """Return the rows of a table in a task's part of a page, by recipe."""
    part = text.split(f"\n### {task}\n")[1].split("\n### ")[0]
    lines = re.findall(r"(?:^\|.*\n?)+", part, re.MULTILINE)[number].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): row[1:] for row in rows}
