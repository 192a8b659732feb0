"""Records of finished trials: a line of JSON each, which several processes may add to; and the plan of a comparison."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import transformers
from filelock import FileLock

import nxm_hf

from .example_scripts import SQUAD, TASKS
from .options import BUDGETS
from .trials import Trial

Record = dict[str, Any]
TRIALS_FOLDER = "cells"  # its name in output directories, which older comparisons have too


@dataclass
class RecordFile:
    """The records of finished trials, in a file that is only ever appended to."""

    path: Path
    records: dict[str, Record] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lock = self.path.with_name(f"{self.path.name}.lock")
        self.refresh()

    def refresh(self) -> None:
        """Read the file again.

        A last line without its end is skipped: it is still being written, or was cut off by a kill.

        Raises:
            ValueError: A line is not a record.
        """
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        for number, line in enumerate(text.split("\n")[:-1], 1):
            try:
                record = json.loads(line)
                self.records[record["name"]] = record
            except (ValueError, KeyError) as error:
                raise ValueError(
                    f"Line {number} of {self.path} is no record ({error!r}). Remove it; its trial is run again."
                ) from None

    def add(self, record: Record) -> None:
        """Append a record.

        Args:
            record: The record, with its "name".
        """
        with FileLock(self.lock), self.path.open("ab+") as file:  # the system releases the lock of a dead process
            _cut_torn_line(file)
            file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.records[record["name"]] = record

    def of(self, trials: Iterable[Trial]) -> list[Record]:
        """Return the records of those trials that are finished.

        Args:
            trials: The trials.
        """
        return [self.records[trial.name] for trial in trials if trial.name in self.records]


def _cut_torn_line(file: IO[bytes]) -> None:
    file.seek(0)
    text = file.read()
    if not text.endswith(b"\n"):
        file.truncate(text.rfind(b"\n") + 1)


def predictions_file(folder: Path, task: str) -> Path:
    """Return the path of the predictions for a task's first evaluation split.

    Args:
        folder: The output directory of a trial.
        task: The task.
    """
    name = "predictions.jsonl" if task == SQUAD else f"eval_results_{task}{TASKS[task].splits[0]}.txt"
    return folder / name


def read_predictions(path: Path) -> tuple[list[str], list[str]]:
    """Return the predictions and the labels of a file that the script of a task wrote.

    Of answers to questions they are the F1 of each, and 1.

    Args:
        path: The file, see `predictions_file`.
    """
    if path.suffix == ".jsonl":
        scores = [str(json.loads(line)["f1"]) for line in path.read_text(encoding="utf-8").splitlines()]
        return scores, ["1.0"] * len(scores)
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    return [row[1] for row in rows], [row[2] for row in rows]


def encode_labels(texts: Sequence[str], task: str) -> list[float]:
    """Return labels as their numbers, and scores as floats.

    Args:
        texts: Labels or scores, as a file of predictions has them.
        task: The task.
    """
    labels = TASKS[task].labels
    return [labels.index(text) if labels else float(text) for text in texts]


def similarities(log_history: Sequence[Mapping[str, float]]) -> list[float]:
    """Return the similarities of masks that were logged in the phase of the recipe.

    ADMM has one for each logged iteration from the second on, because the first has no mask before it. Once the mask
    is frozen, its similarity is 1, which does not count.

    Args:
        log_history: The history of a Trainer's state.
    """
    logged = [entry for entry in log_history if entry.get("nxm/phase") == 1]
    if not any("nxm/iterations" in entry for entry in logged):
        return [entry["nxm/mask_similarity"] for entry in logged]
    by_iteration = {entry["nxm/iterations"]: entry["nxm/mask_similarity"] for entry in logged}
    return [similarity for iteration, similarity in by_iteration.items() if iteration >= 2]


def make_record(trial: Trial, folder: Path, seconds: float, teacher: Record | None = None) -> Record:
    """Return the record of a finished trial: numbers, and no row of data.

    Args:
        trial: The trial.
        folder: What the script of its task wrote for it.
        seconds: How long it took.
        teacher: The record of its teacher, if it has one.
    """
    metrics = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    similarity = similarities(state["log_history"])
    predictions, truth = read_predictions(predictions_file(folder, trial.task))
    labels = TASKS[trial.task].labels
    recalls = {
        label: sum(ours == true == label for ours, true in zip(predictions, truth, strict=True))
        / max(truth.count(label), 1)
        for label in labels
    }
    cost = {"teacher": teacher["name"], "teacher_seconds": teacher["seconds"]} if teacher else {}
    return {
        "name": trial.name,
        **asdict(trial),
        "config": trial.config.to_dict(),
        "metrics": metrics,
        "recall": recalls,
        "majority": max((truth.count(label) / len(truth) for label in labels), default=None),
        # Only trials on all training rows are compared row by row.
        "predictions": [] if trial.hold_out else encode_labels(predictions, trial.task),
        "mask_similarity": sum(similarity) / len(similarity) if similarity else None,
        "steps": state["global_step"],
        "seconds": round(seconds, 1),
        **cost,
        "versions": {"nxm_hf": nxm_hf.__version__, "transformers": transformers.__version__},
    }


def trial_of(record: Record) -> Trial:
    """Return the trial of a record, or of an entry of a plan.

    Args:
        record: The record or entry.
    """
    return Trial(
        task=record["task"],
        recipe=record["recipe"],
        seed=record["seed"],
        grid=tuple((key, value) for key, value in record["grid"]),
        hold_out=record["hold_out"],
        model=record["model"],
        more=tuple(record["more"]),
    )


@dataclass
class Plan:
    """The trials that a comparison shows, so that missing ones are known, and the commands that asked for them."""

    path: Path

    def read(self) -> tuple[list[Trial], list[str]]:
        """Return the trials and the commands; both are empty if nothing was planned."""
        if not self.path.exists():
            return [], []
        payload = json.loads(self.path.read_text(encoding="utf-8"))
        return [trial_of(entry) for entry in payload["cells"]], payload["commands"]

    def add(self, trials: Iterable[Trial], command: str) -> None:
        """Add trials to the plan; a new choice of the grid replaces the old one.

        Args:
            trials: The trials.
            command: The command line that asked for them.
        """
        with FileLock(self.path.with_name(f"{self.path.name}.lock")):
            planned, commands = self.read()
            latest = {without_choice(trial): trial for trial in (*planned, *trials)}
            payload = {
                "commands": list(dict.fromkeys([*commands, command])),
                "cells": [asdict(trial) for trial in latest.values()],
            }
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(payload, indent=1) + "\n", encoding="utf-8")
            partial.replace(self.path)


def without_choice(trial: Trial) -> tuple:
    """Return a trial's key without the choice of the grid. Trials with the same key replace each other in a plan.

    Args:
        trial: The trial.
    """
    budget = tuple(pair for pair in trial.grid if pair[0] in BUDGETS)
    return trial.task, trial.recipe, trial.seed, trial.hold_out, trial.model, trial.more, budget
