"""Results of finished cells: a line of JSON each, which several processes may add to, and the plan of a comparison."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import transformers
from filelock import FileLock
from run_glue import TASKS

import nxm_hf
from comparing.cells import Cell


@dataclass
class Results:
    """The finished cells, in a file that is only ever added to."""

    path: Path
    records: dict[str, dict] = field(default_factory=dict)

    def __post_init__(self):
        self.lock = self.path.with_name(f"{self.path.name}.lock")
        self.refresh()

    def refresh(self) -> None:
        """Read what is there; a last line without its end is still being written, or was cut off by a kill."""
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        for number, line in enumerate(text.split("\n")[:-1], 1):
            try:
                record = json.loads(line)
                self.records[record["name"]] = record
            except (ValueError, KeyError) as error:
                raise ValueError(
                    f"Line {number} of {self.path} is no record ({error!r}). Remove it; its cell is run again."
                ) from None

    def add(self, record: dict) -> None:
        """Write a line; the lock is the system's own, which lets go when a process dies."""
        with FileLock(self.lock), self.path.open("ab+") as file:
            self._cut_torn_line(file)
            file.write(json.dumps(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.records[record["name"]] = record

    def _cut_torn_line(self, file) -> None:
        file.seek(0)
        text = file.read()
        if not text.endswith(b"\n"):
            file.truncate(text.rfind(b"\n") + 1)

    def of(self, cells: Iterable[Cell]) -> list[dict]:
        """The records of those cells that are finished."""
        return [self.records[cell.name] for cell in cells if cell.name in self.records]


def read_predictions(path: Path) -> tuple[list[str], list[str]]:
    """The predictions and the labels of a file that `run_glue.py` wrote."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    return [row[1] for row in rows], [row[2] for row in rows]


def predictions_file(folder: Path, task: str) -> Path:
    """Where the predictions of a task's first evaluation split are."""
    return folder / f"eval_results_{task}{TASKS[task].splits[0]}.txt"


def encoded(words: list[str], task: str) -> list[float]:
    """Labels as their numbers; scores as they are."""
    labels = TASKS[task].labels
    return [labels.index(word) if labels else float(word) for word in words]


def summary(cell: Cell, folder: Path, seconds: float, teacher: dict | None = None) -> dict:
    """What is kept of a finished cell: numbers, and no row of data."""
    metrics = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    similarity = [record["nxm/mask_similarity"] for record in state["log_history"] if record.get("nxm/phase") == 1]
    said, true = read_predictions(predictions_file(folder, cell.task))
    labels = TASKS[cell.task].labels
    recalls = {
        label: sum(a == b == label for a, b in zip(said, true, strict=True)) / max(true.count(label), 1)
        for label in labels
    }
    cost = {"teacher": teacher["name"], "teacher_seconds": teacher["seconds"]} if teacher else {}
    return {
        "name": cell.name,
        **asdict(cell),
        "config": cell.config.to_dict(),
        "metrics": metrics,
        "recall": recalls,
        "majority": max((true.count(label) / len(true) for label in labels), default=None),
        "predictions": [] if cell.hold_out else encoded(said, cell.task),  # only final cells are compared row by row
        "mask_similarity": sum(similarity) / len(similarity) if similarity else None,
        "steps": state["global_step"],
        "seconds": round(seconds, 1),
        **cost,
        "versions": {"nxm_hf": nxm_hf.__version__, "transformers": transformers.__version__},
    }


def cell_of(record: dict) -> Cell:
    """The cell that a record, or an entry of a plan, is of."""
    grid = tuple((key, value) for key, value in record["grid"])
    words = (record["task"], record["recipe"], record["seed"], grid, record["hold_out"], record["model"])
    return Cell(*words, more=tuple(record["more"]))


@dataclass
class Plan:
    """Which cells a comparison is to show, so that missing ones can be told, and the commands that asked for them."""

    path: Path

    def read(self) -> tuple[list[Cell], list[str]]:
        """The cells and the commands; none where nothing was planned."""
        if not self.path.exists():
            return [], []
        told = json.loads(self.path.read_text(encoding="utf-8"))
        return [cell_of(entry) for entry in told["cells"]], told["commands"]

    def add(self, cells: Iterable[Cell], command: str) -> None:
        """Plan these too; where the grid was chosen anew, in place of what was chosen before."""
        with FileLock(self.path.with_name(f"{self.path.name}.lock")):
            planned, commands = self.read()
            kinds = {kind_of(cell): cell for cell in (*planned, *cells)}
            told = {
                "commands": list(dict.fromkeys([*commands, command])),
                "cells": [asdict(cell) for cell in kinds.values()],
            }
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
            partial.replace(self.path)


def kind_of(cell: Cell) -> tuple:
    """All of a cell but what a grid chose."""
    budget = tuple(pair for pair in cell.grid if pair[0] in BUDGETS)
    return cell.task, cell.recipe, cell.seed, cell.hold_out, cell.model, cell.more, budget


BUDGETS = ("num_train_epochs", "max_steps")
