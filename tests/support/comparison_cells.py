"""What tests of comparisons share: a tiny BERT and rows on disk, and folders of finished cells that nobody trained."""

import json
import random
from pathlib import Path

from comparing.cells import Cell
from comparing.measures import metrics_of
from comparing.results import Results, predictions_file
from run_glue import TASKS
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from nxm_hf import NxMConfig
from tests.support.models import make_bert

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def write_model(folder: Path) -> Path:
    """A BERT of two layers with a tokenizer of 46 words."""
    words = [*SPECIAL, *(f"w{number}" for number in range(50 - len(SPECIAL)))]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **names).save_pretrained(folder)
    make_bert().save_pretrained(folder)
    return folder


def write_rows(folder: Path, task: str = "mrpc", count: int = 8) -> Path:
    """Rows of a task, in files by split."""
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


def made_labels(task: str, rows: int) -> list[float]:
    """Labels, or scores, of made-up validation rows."""
    draw = random.Random(task)
    kinds = TASKS[task].labels
    return [draw.randrange(len(kinds)) if kinds else round(draw.uniform(0, 5), 3) for _ in range(rows)]


def made_record(cell: Cell, right: float, rows: int = 60) -> dict:
    """The record of a cell that is right about a share of its rows."""
    draw, labels = random.Random(f"{cell.name}{right}"), made_labels(cell.task, rows)
    kinds = TASKS[cell.task].labels
    other = (lambda label: (label + 1) % len(kinds)) if kinds else (lambda label: round(draw.uniform(0, 5), 3))
    said = [label if draw.random() < right else other(label) for label in labels]
    values = {
        f"eval_{name}": float(metric(array(said), array(labels))) for name, metric in metrics_of(cell.task).items()
    }
    recall = {
        name: sum(a == b == kind for a, b in zip(said, labels, strict=True)) / max(labels.count(kind), 1)
        for kind, name in enumerate(kinds)
    }
    run = {"epoch": 2.0, "train_samples": 100, "train_runtime": 10.0, "train_steps_per_second": 2.5}
    return {
        "name": cell.name,
        **{name: getattr(cell, name) for name in ("task", "recipe", "seed", "grid", "hold_out", "model", "more")},
        "config": cell.config.to_dict() if cell.recipe != "dense" else NxMConfig("dense").to_dict(),
        "metrics": {**values, **run},
        "recall": recall,
        "majority": max((labels.count(kind) / rows for kind in range(len(kinds))), default=None),
        "predictions": said,
        "mask_similarity": None if cell.config.is_dense else 0.9 + right / 20,
        "seconds": 10.0,
        "versions": {},
    }


def array(values):
    """Values as numpy has them."""
    import numpy

    return numpy.asarray(values)


def write_cells(folder: Path, records: list[dict], with_rows: bool = True) -> Path:
    """A folder of finished cells."""
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    results = Results(folder / "results.jsonl")
    for record in records:
        results.add(json.loads(json.dumps(record)))
        if with_rows:
            write_predictions(folder / "cells" / record["name"], record)
    return folder


def write_predictions(place: Path, record: dict) -> None:
    """The file of predictions that `run_glue.py` would have written."""
    place.mkdir(exist_ok=True)
    kinds, labels = TASKS[record["task"]].labels, made_labels(record["task"], len(record["predictions"]))
    word = (lambda value: kinds[value]) if kinds else str
    pairs = zip(record["predictions"], labels, strict=True)
    lines = [f"{row}\t{word(said)}\t{word(true)}" for row, (said, true) in enumerate(pairs)]
    predictions_file(place, record["task"]).write_text("\n".join(["index\tprediction\tlabel", *lines]) + "\n")
