"""A study: the finished cells of a folder, sorted into tasks and arms, with what they are compared to."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from comparing.arms import without
from comparing.cells import Cell
from comparing.measures import Difference, difference, mean, row_scores, score
from comparing.results import BUDGETS, Plan, Results, cell_of, encoded, kind_of, predictions_file, read_predictions
from comparing.shapes import Shape, diversity, flops, option
from nxm_hf import NxMConfig


@dataclass(frozen=True)
class Runs:
    """The records of one arm on one task, by seed."""

    task: str
    label: str
    records: dict[int, dict]

    @property
    def first(self) -> dict:
        """A record, for what all of them share."""
        return next(iter(self.records.values()))

    @property
    def recipe(self) -> str:
        """The name that its recipe's text begins with."""
        return self.first["recipe"].split()[0]

    @property
    def scores(self) -> list[float]:
        """The task's metric, seed by seed."""
        return [score(record) for record in self.records.values()]

    @property
    def similarity(self) -> float:
        """The mean similarity of masks from one refresh to the next; NaN where none was recorded."""
        found = [record["mask_similarity"] for record in self.records.values()]
        return mean([value for value in found if value is not None])

    @property
    def seconds(self) -> float:
        """How long a training took, a teacher's before it counted in."""
        return mean([record["seconds"] + record.get("teacher_seconds", 0) for record in self.records.values()])

    @property
    def examples(self) -> float:
        """How many examples it was trained on, those of each epoch counted."""
        metrics = self.first["metrics"]
        return metrics["epoch"] * metrics["train_samples"]


@dataclass(frozen=True)
class Part:
    """Cells that may be compared: of one model, with the same options but for the budget."""

    model: str
    more: tuple[str, ...]
    folder: Path
    runs: tuple[Runs, ...]
    held_out: tuple[dict, ...] = ()  # records of trials that settings were chosen by

    @cached_property
    def budget(self) -> str:
        """The budget of every arm that is not called by another."""
        return usual_budget([record for runs in self.runs for record in runs.records.values()])

    @cached_property
    def tasks(self) -> list[str]:
        """The tasks, in the order in which they were run."""
        return list(dict.fromkeys(one.task for one in self.runs))

    @cached_property
    def labels(self) -> list[str]:
        """The arms, in the order in which they were run."""
        return list(dict.fromkeys(one.label for one in self.runs))

    def of(self, task: str) -> list[Runs]:
        """The arms of a task."""
        return [one for one in self.runs if one.task == task]

    def find(self, task: str, label: str) -> Runs | None:
        """An arm of a task."""
        return next((one for one in self.of(task) if one.label == label), None)

    def reference(self, runs: Runs, recipe: str) -> Runs | None:
        """The plain runs of a recipe with the same budget and, unless it is dense, the same pattern."""

        def fits(one: Runs) -> bool:
            config = one.first["config"]
            plain = not (config["settings"] or config["warmup"] or config["settle"] or one.first.get("teacher"))
            same = recipe == "dense" or config["pattern"] == runs.first["config"]["pattern"]
            return one.recipe == recipe and plain and same and budget_of(one.first) == budget_of(runs.first)

        return next(filter(fits, self.of(runs.task)), None)

    def truth(self, task: str) -> np.ndarray | None:
        """The labels of the validation rows, from the files of predictions; None where no such file is left."""
        for record in (record for runs in self.of(task) for record in runs.records.values()):
            path = predictions_file(self.folder / "cells" / record["name"], task)
            if path.is_file():
                return np.asarray(encoded(read_predictions(path)[1], task))
        return None

    @cached_property
    def row_scores(self) -> dict[str, dict[str, np.ndarray]]:
        """Task -> the scores of its runs on the rows of every replicate."""
        records = {task: [record for runs in self.of(task) for record in runs.records.values()] for task in self.tasks}
        return {task: row_scores(task, self.truth(task), found) for task, found in records.items()}

    def difference(self, runs: Runs, recipe: str) -> Difference | None:
        """By how much an arm is above the plain runs of a recipe."""
        other = self.reference(runs, recipe)
        if other is None or other is runs:
            return None
        return difference(runs.records, other.records, self.row_scores[runs.task])

    # -- cost -----------------------------------------------------------------------------------------------------

    def cost(self, runs: Runs) -> float:
        """Training FLOPs over those of dense training on the task's largest budget; NaN where the shape is not known.

        A teacher costs its own training and the forward passes that the student asks of it.
        """
        cell, steps = cell_of(runs.first), self.steps(runs)
        try:
            base, tokens = Shape.of(cell.model, cell.task, cell.more), int(option(cell.more, "max_seq_length") or 128)
            dense = flops(base, NxMConfig("dense").to_json_string(), steps, tokens)
            ours = flops(cell.shape, NxMConfig.from_dict(runs.first["config"]).to_json_string(), steps, tokens)
        except (OSError, ValueError):
            return math.nan
        teacher = dense + dense / 3 if runs.first.get("teacher") else 0.0
        most = max(one.examples for one in self.of(runs.task))
        return (ours + teacher) * runs.examples / (dense * most)

    def diversity(self, runs: Runs) -> float:
        """log10 of the number of masks for each pruned weight; NaN where it is dense or not known."""
        config = NxMConfig.from_dict(runs.first["config"])
        if config.is_dense:
            return math.nan
        try:
            found = diversity(Shape.of(self.model, runs.task, self.more), config.to_json_string())
        except (OSError, ValueError):
            return math.nan
        return math.nan if found is None else found

    def steps(self, runs: Runs) -> int:
        """Optimizer steps; of a record that does not tell them, by its speed."""
        metrics = runs.first["metrics"]
        told = metrics["train_runtime"] * metrics["train_steps_per_second"]
        return runs.first.get("steps") or max(round(told), 1)


@dataclass(frozen=True)
class Study:
    """All that a folder holds."""

    parts: tuple[Part, ...]
    missing: tuple[Cell, ...]
    commands: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> "Study":
        """Read the results and the plan of a folder."""
        records = list(Results(folder / "results.jsonl").records.values())
        planned, commands = Plan(folder / "plan.json").read()
        shown = list(_shown(records, planned))
        groups, trials = _by_part(shown), _by_part(record for record in records if record["hold_out"])
        parts = tuple(
            Part(*key, folder, tuple(_runs(found)), tuple(trials.get(key, ()))) for key, found in groups.items()
        )
        names = {record["name"] for record in records}
        missing = [cell for cell in planned or _product(shown) if cell.name not in names]
        return cls(parts, tuple(missing), tuple(commands))


def _by_part(records: Iterable[dict]) -> dict[tuple, list[dict]]:
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        groups.setdefault((record["model"], without(record["more"])), []).append(record)
    return groups


def _shown(records: Iterable[dict], planned: Sequence[Cell]) -> Iterable[dict]:
    """The records of final cells, as planned; of a planned kind only the planned one, not what taught others."""
    names = {kind_of(cell): cell.name for cell in planned}
    places = {name: place for place, name in enumerate(names.values())}
    final = [record for record in records if not record["hold_out"]]
    shown = [record for record in final if names.get(kind_of(cell_of(record)), record["name"]) == record["name"]]
    return sorted(shown, key=lambda record: places.get(record["name"], len(places)))


def _product(records: Sequence[dict]) -> list[Cell]:
    """What would be whole where nobody planned: every recipe on every task with every seed that any has."""
    cells = [cell_of(record) for record in records]
    have = {(cell.task, cell.recipe, cell.seed, cell.model, cell.more) for cell in cells}
    kinds = dict.fromkeys((cell.recipe, cell.model, cell.more) for cell in cells)
    tasks, seeds = (dict.fromkeys(getattr(cell, name) for cell in cells) for name in ("task", "seed"))
    return [
        Cell(task, recipe, seed, model=model, more=more)
        for task in tasks
        for seed in seeds
        for recipe, model, more in kinds
        if (task, recipe, seed, model, more) not in have
    ]


def budget_of(record: dict) -> str:
    """How long a cell was trained, as it was written; nothing where nobody wrote it."""
    grid = dict(map(tuple, record["grid"]))
    found = ((name, grid.get(name) or option(record["more"], name)) for name in reversed(BUDGETS))
    return next((f"{name}={value}" for name, value in found if value), "")


def usual_budget(records: Sequence[dict]) -> str:
    """The budget of most records."""
    return Counter(map(budget_of, records)).most_common(1)[0][0]


def _runs(records: Sequence[dict]) -> Iterable[Runs]:
    """Records by task and arm; an arm is called by its recipe, and by what else it takes to tell it from others."""
    usual, points = usual_budget(records), {}
    for record in records:
        key = record["recipe"], record["task"], record["seed"], budget_of(record)
        points.setdefault(key, []).append(record)
    crowded = {key[0] for key, found in points.items() if len(found) > 1}
    groups: dict[tuple[str, str], dict[int, dict]] = {}
    for record in records:
        told = [budget_of(record)] if budget_of(record) != usual else []
        if record["recipe"] in crowded:
            told += [f"{key}={value}" for key, value in record["grid"] if key not in BUDGETS]
        label = " ".join([record["recipe"], *([f"[{', '.join(filter(None, told))}]"] if any(told) else [])])
        groups.setdefault((record["task"], label), {})[record["seed"]] = record
    return [Runs(task, label, dict(sorted(found.items()))) for (task, label), found in groups.items()]
