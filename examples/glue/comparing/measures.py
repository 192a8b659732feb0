"""Measures: scores of predictions, what differs between two recipes, and how far that is chance.

Intervals are of a hierarchical bootstrap. A replicate draws the seeds with replacement, and the validation rows with
replacement; the rows are the same for every seed and every recipe, since they are the same rows that all were asked.
It scores every drawn run on the drawn rows, and takes the difference of two recipes seed by seed. The interval is from
the 2.5th to the 97.5th percentile of the replicates.
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import glue_metric
import numpy as np
from run_glue import TASKS

REPLICATES = 1000
PERCENTILES = (2.5, 97.5)
# As the paper reports them: the task's own metric, but of STS-B the rank correlation, and of MNLI both splits.
PAPER = ("mnli", "sst2", "qnli", "cola", "stsb", "mrpc", "rte")
Metric = Callable[[np.ndarray, np.ndarray], float]


def metrics_of(task: str) -> dict[str, Metric]:
    """The metrics of a task by name, its own first."""
    found = {metric.__name__: metric for metric in glue_metric.TASKS[task]}
    return {TASKS[task].best: found.pop(TASKS[task].best), **found}


def score(record: dict, metric: str | None = None) -> float:
    """A metric of a finished cell on its first evaluation split."""
    return record["metrics"][f"eval_{metric or TASKS[record['task']].best}"]


def mean(values: Sequence[float]) -> float:
    """The mean; NaN of nothing."""
    return float(np.mean(values)) if len(values) else math.nan


def deviation(values: Sequence[float]) -> float:
    """The standard deviation of a sample; NaN of one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def agreement(ours: dict, theirs: dict) -> float:
    """How alike two runs predict: the share of rows with the same label, or Pearson's correlation of scores."""
    one, other = np.asarray(ours["predictions"]), np.asarray(theirs["predictions"])
    if len(one) != len(other):
        return math.nan
    return float((one == other).mean() if TASKS[ours["task"]].labels else glue_metric.pearson(one, other))


def constant_scores(task: str, labels: np.ndarray) -> dict[str, float]:
    """For each metric, the most that the same answer to every row gets; NaN where that has none."""
    answers = range(len(TASKS[task].labels))
    return {
        name: max((float(metric(np.full(len(labels), answer), labels)) for answer in answers), default=math.nan)
        for name, metric in metrics_of(task).items()
    }


def closed(ours: float, low: float, high: float) -> float:
    """The share of the way from one score up to another; NaN where the second is not above the first.

    Of `small` and `dense` it is the f of Stosic and Stosic, 2021 (https://arxiv.org/abs/2105.12920): 1 is dense.

    >>> closed(0.75, 0.5, 1.0)
    0.5
    """
    return (ours - low) / (high - low) if high > low else math.nan


def paper_scores(records: Sequence[dict]) -> list[float]:
    """The numbers of one task in the paper's average, each the mean over seeds; none of a task that it leaves out."""
    task = records[0]["task"] if records else ""
    if task not in PAPER:
        return []
    names = {"stsb": ["spearmanr"], "mnli": ["accuracy", "mismatched_accuracy"]}.get(task, [TASKS[task].best])
    return [mean([score(record, name) for record in records]) for name in names]


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean; NaN where a value is not above 0, of which there is none.

    >>> round(geometric_mean([2.0, 8.0]), 6)
    4.0
    """
    if not values or not min(values) > 0:
        return math.nan
    return math.exp(mean([math.log(value) for value in values]))


# -- bootstrap ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """By how much one recipe scores above another on the same seeds and rows; bounds are NaN where there are none."""

    mean: float
    low: float
    high: float
    seeds: int
    rows: bool  # whether rows were drawn too
    replicates: np.ndarray

    @classmethod
    def of(cls, value: float, replicates: np.ndarray, seeds: int, rows: bool) -> "Difference":
        """From the value and its replicates."""
        drawn = seeds > 1 or rows
        low, high = (
            np.nanpercentile(replicates, PERCENTILES) if drawn and np.isfinite(replicates).any() else (math.nan,) * 2
        )
        return cls(value, float(low), float(high), seeds, rows, replicates)


def row_scores(task: str, labels: np.ndarray | None, records: Sequence[dict]) -> dict[str, np.ndarray]:
    """For each run, by name, the task's metric on every replicate's rows; one number where there are no labels."""
    metric = metrics_of(task)[TASKS[task].best]
    if labels is None or any(len(record["predictions"]) != len(labels) for record in records):
        return {record["name"]: np.array([score(record)]) for record in records}
    said = {record["name"]: np.asarray(record["predictions"]) for record in records}
    found = {name: np.empty(REPLICATES) for name in said}
    chance = generator(task, "rows")
    for replicate in range(REPLICATES):
        rows = chance.integers(len(labels), size=len(labels))
        for name, predictions in said.items():
            found[name][replicate] = metric(predictions[rows], labels[rows])
    return found


def difference(
    ours: Mapping[int, dict], theirs: Mapping[int, dict], scores: Mapping[str, np.ndarray]
) -> Difference | None:
    """The paired difference of two recipes on one task, from their records by seed; None where no seed has both."""
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return None
    apart = np.stack(
        [scores[ours[seed]["name"]] - scores[theirs[seed]["name"]] for seed in seeds]
    )  # [seeds, replicates]
    rows = apart.shape[1] > 1
    apart = np.broadcast_to(apart, (len(seeds), REPLICATES))
    drawn = generator(ours[seeds[0]]["task"], "seeds").integers(len(seeds), size=(REPLICATES, len(seeds)))
    replicates = apart[drawn, np.arange(REPLICATES)[:, None]].mean(1)
    value = mean([score(ours[seed]) - score(theirs[seed]) for seed in seeds])
    return Difference.of(value, replicates, len(seeds), rows)


def mean_difference(differences: Sequence[Difference]) -> Difference:
    """The difference on the mean of several tasks, whose seeds and rows are drawn apart."""
    replicates = np.mean([one.replicates for one in differences], axis=0)
    seeds, rows = min(one.seeds for one in differences), all(one.rows for one in differences)
    return Difference.of(mean([one.mean for one in differences]), replicates, seeds, rows)


def generator(task: str, what: str) -> np.random.Generator:
    """The chance of a task's replicates: the same for every recipe and every time the page is made."""
    return np.random.default_rng(zlib.crc32(f"{task} {what}".encode()))
