"""The results of a comparison: the records of a folder by model, task and variant, with what they are compared to."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from nxm_hf import NxMConfig

from .example_scripts import SQUAD
from .model_shapes import Shape, flops, masks_per_weight
from .options import BUDGETS, option_value, without_budget
from .records import (
    TRIALS_FOLDER,
    Plan,
    Record,
    RecordFile,
    encode_labels,
    predictions_file,
    read_predictions,
    trial_of,
    without_choice,
)
from .statistics import Difference, mean, paired_difference, row_scores, score
from .trials import Trial

DEFAULT_LENGTH = 128  # tokens of a row, where the script was given no other length
SQUAD_LENGTH = 384  # that of question_answering.py


@dataclass(frozen=True)
class Runs:
    """The records of one variant on one task, by seed."""

    task: str
    label: str
    records: dict[int, Record]

    @property
    def first(self) -> Record:
        """Return one of the records, for what all of them share."""
        return next(iter(self.records.values()))

    @property
    def recipe(self) -> str:
        """Return the name of the recipe, without its settings."""
        return self.first["recipe"].split()[0]

    @property
    def scores(self) -> list[float]:
        """Return the task's main metric, seed by seed."""
        return [score(record) for record in self.records.values()]

    @property
    def similarity(self) -> float:
        """Return the mean similarity of masks from one refresh to the next; NaN if none was recorded."""
        values = [record["mask_similarity"] for record in self.records.values()]
        return mean([value for value in values if value is not None])

    @property
    def seconds(self) -> float:
        """Return how long a training took on average, with that of its teacher."""
        return mean([record["seconds"] + record.get("teacher_seconds", 0) for record in self.records.values()])

    @property
    def examples(self) -> float:
        """Return how many examples it was trained on, those of each epoch counted."""
        metrics = self.first["metrics"]
        return metrics["epoch"] * metrics["train_samples"]

    @property
    def steps(self) -> int:
        """Return the number of optimizer steps; older records do not have it, so it follows from their speed."""
        metrics = self.first["metrics"]
        estimate = round(metrics["train_runtime"] * metrics["train_steps_per_second"])
        return self.first.get("steps") or max(estimate, 1)


@dataclass(frozen=True)
class ModelResults:
    """The trials that may be compared: of one model, with the same options but for the budget."""

    model: str
    more: tuple[str, ...]
    folder: Path
    runs: tuple[Runs, ...]
    held_out: tuple[Record, ...] = ()  # trials on rows held out, by which settings were chosen

    @cached_property
    def budget(self) -> str:
        """Return the budget of every variant whose label names no other."""
        return usual_budget([record for runs in self.runs for record in runs.records.values()])

    @cached_property
    def tasks(self) -> list[str]:
        """Return the tasks, in the order in which they were run."""
        return list(dict.fromkeys(runs.task for runs in self.runs))

    @cached_property
    def labels(self) -> list[str]:
        """Return the labels of the variants, in the order in which they were run."""
        return list(dict.fromkeys(runs.label for runs in self.runs))

    def of(self, task: str) -> list[Runs]:
        """Return the variants of a task."""
        return [runs for runs in self.runs if runs.task == task]

    def find(self, task: str, label: str) -> Runs | None:
        """Return the variant of a task with a label, or None."""
        return next((runs for runs in self.of(task) if runs.label == label), None)

    def reference(self, runs: Runs, recipe: str) -> Runs | None:
        """Return the runs that a variant is compared to.

        Args:
            runs: The variant.
            recipe: The recipe to compare to, with no settings of its own.

        Returns:
            Its runs with the same task and budget and, unless it is dense, the same pattern; None if there are none.
        """

        def fits(other: Runs) -> bool:
            config = other.first["config"]
            plain = not (config["settings"] or config["warmup"] or config["settle"] or other.first.get("teacher"))
            same_pattern = recipe == "dense" or config["pattern"] == runs.first["config"]["pattern"]
            same_budget = budget_of(other.first) == budget_of(runs.first)
            return other.recipe == recipe and plain and same_pattern and same_budget

        return next(filter(fits, self.of(runs.task)), None)

    def truth(self, task: str) -> np.ndarray | None:
        """Return the labels of the validation rows.

        Args:
            task: The task.

        Returns:
            The labels, from a file of predictions; None if no such file is left.
        """
        for record in self._records(task):
            path = predictions_file(self.folder / TRIALS_FOLDER / record["name"], task)
            if path.is_file():
                return np.asarray(encode_labels(read_predictions(path)[1], task))
        return None

    @cached_property
    def row_scores(self) -> dict[str, dict[str, np.ndarray]]:
        """Return by task the scores of its trials on the rows of every replicate."""
        return {task: row_scores(task, self.truth(task), self._records(task)) for task in self.tasks}

    def _records(self, task: str) -> list[Record]:
        return [record for runs in self.of(task) for record in runs.records.values()]

    def difference(self, runs: Runs, recipe: str) -> Difference | None:
        """Return by how much a variant is above a recipe.

        Args:
            runs: The variant.
            recipe: The recipe, see `reference`.

        Returns:
            The difference; None if the recipe was not run, or is the variant itself.
        """
        other = self.reference(runs, recipe)
        if other is None or other is runs:
            return None
        return paired_difference(runs.records, other.records, self.row_scores[runs.task])

    # -- cost -----------------------------------------------------------------------------------------------------

    def cost(self, runs: Runs) -> float:
        """Return training FLOPs over those of dense training with the task's largest budget.

        A teacher costs its own training, and one forward pass in each step of the student.

        Args:
            runs: The variant.

        Returns:
            The ratio; NaN if the config of the model cannot be read.
        """
        trial = trial_of(runs.first)
        default = SQUAD_LENGTH if trial.task == SQUAD else DEFAULT_LENGTH
        tokens = int(option_value(trial.more, "max_seq_length") or default)
        config = NxMConfig.from_dict(runs.first["config"]).to_json_string()
        try:
            shape = Shape.from_options(trial.model, trial.task, trial.more)
            dense = flops(shape, NxMConfig("dense").to_json_string(), runs.steps, tokens)
            sparse = flops(trial.shape, config, runs.steps, tokens)
        except (OSError, ValueError):
            return math.nan
        teacher = dense + dense / 3 if runs.first.get("teacher") else 0.0
        most_examples = max(other.examples for other in self.of(runs.task))
        return (sparse + teacher) * runs.examples / (dense * most_examples)

    def diversity(self, runs: Runs) -> float:
        """Return log10 of the number of masks for each pruned weight.

        Args:
            runs: The variant.

        Returns:
            The number; NaN for a dense variant, and if masks cannot be counted or the config cannot be read.
        """
        config = NxMConfig.from_dict(runs.first["config"])
        if config.is_dense:
            return math.nan
        try:
            shape = Shape.from_options(self.model, runs.task, self.more)
            diversity = masks_per_weight(shape, config.to_json_string())
        except (OSError, ValueError):
            return math.nan
        return math.nan if diversity is None else diversity


@dataclass(frozen=True)
class ComparisonResults:
    """All results of a folder."""

    models: tuple[ModelResults, ...]
    missing: tuple[Trial, ...]
    commands: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> "ComparisonResults":
        """Read the records and the plan of a folder.

        Args:
            folder: The output directory of a comparison.
        """
        records = list(RecordFile(folder / "results.jsonl").records.values())
        planned, commands = Plan(folder / "plan.json").read()
        shown = _shown(records, planned)
        groups, held_out = _by_model(shown), _by_model(record for record in records if record["hold_out"])
        models = tuple(
            ModelResults(*key, folder, tuple(_by_variant(group)), tuple(held_out.get(key, ())))
            for key, group in groups.items()
        )
        names = {record["name"] for record in records}
        missing = [trial for trial in planned or _missing_combinations(shown) if trial.name not in names]
        return cls(models, tuple(missing), tuple(commands))


def budget_of(record: Record) -> str:
    """Return the length of a trial's training, as it was written; empty if it was the default.

    Args:
        record: The record of the trial.
    """
    grid = dict(map(tuple, record["grid"]))
    values = ((name, grid.get(name) or option_value(record["more"], name)) for name in reversed(BUDGETS))
    return next((f"{name}={value}" for name, value in values if value), "")


def usual_budget(records: Sequence[Record]) -> str:
    """Return the budget of most records."""
    return Counter(map(budget_of, records)).most_common(1)[0][0]


def _by_model(records: Iterable[Record]) -> dict[tuple[str, tuple[str, ...]], list[Record]]:
    groups: dict[tuple[str, tuple[str, ...]], list[Record]] = {}
    for record in records:
        groups.setdefault((record["model"], without_budget(record["more"])), []).append(record)
    return groups


def _shown(records: Iterable[Record], planned: Sequence[Trial]) -> list[Record]:
    """Return the records of trials on all rows, in the order of the plan.

    Several trials may differ in the choice of a grid alone. If one of them is planned, the others are left out.
    """
    names = {without_choice(trial): trial.name for trial in planned}
    order = {name: position for position, name in enumerate(names.values())}

    def is_shown(record: Record) -> bool:
        return names.get(without_choice(trial_of(record)), record["name"]) == record["name"]

    shown = [record for record in records if not record["hold_out"] and is_shown(record)]
    return sorted(shown, key=lambda record: order.get(record["name"], len(order)))


def _missing_combinations(records: Sequence[Record]) -> list[Trial]:
    """Return the missing trials of a folder without a plan: every recipe on every task with every seed."""
    trials = [trial_of(record) for record in records]
    present = {(trial.task, trial.recipe, trial.seed, trial.model, trial.more) for trial in trials}
    recipes = dict.fromkeys((trial.recipe, trial.model, trial.more) for trial in trials)
    return [
        Trial(task, recipe, seed, model=model, more=more)
        for task in dict.fromkeys(trial.task for trial in trials)
        for seed in dict.fromkeys(trial.seed for trial in trials)
        for recipe, model, more in recipes
        if (task, recipe, seed, model, more) not in present
    ]


def _by_variant(records: Sequence[Record]) -> list[Runs]:
    """Return records by task and variant.

    The label of a variant is its recipe, with its budget if that is not the usual one. The point of the grid is added
    if two trials of the recipe differ only in it.
    """
    usual = usual_budget(records)
    same = Counter((record["recipe"], record["task"], record["seed"], budget_of(record)) for record in records)
    ambiguous = {recipe for (recipe, *_), count in same.items() if count > 1}
    groups: dict[tuple[str, str], dict[int, Record]] = {}
    for record in records:
        details = [budget_of(record)] if budget_of(record) != usual else []
        if record["recipe"] in ambiguous:
            details += [f"{key}={value}" for key, value in record["grid"] if key not in BUDGETS]
        details = [detail for detail in details if detail]
        label = f"{record['recipe']} [{', '.join(details)}]" if details else record["recipe"]
        groups.setdefault((record["task"], label), {})[record["seed"]] = record
    return [Runs(task, label, dict(sorted(by_seed.items()))) for (task, label), by_seed in groups.items()]
