"""Scores of predictions, and differences between recipes with intervals.

Intervals are of a hierarchical bootstrap. A replicate draws the seeds with replacement, and the validation rows with
replacement. The drawn rows are the same for every seed and every recipe, since all of them predict the same rows. Every
drawn run is scored on the drawn rows, and the difference of two recipes is taken seed by seed. The interval reaches
from the 2.5th to the 97.5th percentile of the replicates.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .example_scripts import SQUAD, TASKS, glue_metric
from .records import Record

REPLICATES = 1000
PERCENTILES = (2.5, 97.5)
# The tasks of the paper's average. It counts the task's own metric, but Spearman on STS-B, and both splits of MNLI.
PAPER_TASKS = ("mnli", "sst2", "qnli", "cola", "stsb", "mrpc", "rte")


def metrics_of(task: str) -> list[str]:
    """Return the names of the metrics of a task, its main one first.

    Args:
        task: The task.
    """
    if task == SQUAD:
        return ["f1", "exact_match"]
    return sorted(glue_metric.TASKS[task], key=lambda name: name != TASKS[task].best)


def score(record: Record, metric: str | None = None) -> float:
    """Return a metric of a finished trial on its first evaluation split.

    Args:
        record: The record of the trial.
        metric: The name of the metric; by default the task's main one.
    """
    return record["metrics"][f"eval_{metric or TASKS[record['task']].best}"]


def mean(values: Sequence[float]) -> float:
    """Return the mean, or NaN if there are no values."""
    return float(np.mean(values)) if len(values) else math.nan


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample, or NaN if it has fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def agreement(ours: Record, theirs: Record) -> float:
    """Return how alike two trials of one task predict.

    Args:
        ours: The record of one trial.
        theirs: The record of the other.

    Returns:
        The fraction of rows with the same label, or Pearson's correlation of scores; NaN if the rows differ in number.
    """
    a, b = np.asarray(ours["predictions"]), np.asarray(theirs["predictions"])
    if len(a) != len(b):
        return math.nan
    metric = "accuracy" if TASKS[ours["task"]].labels else "pearson"
    return glue_metric.scores([metric], a, b)[metric]


def constant_scores(task: str, labels: np.ndarray) -> dict[str, float]:
    """Return the best score that the same answer to every row gets, by metric; NaN for metrics of scores.

    Args:
        task: The task.
        labels: The labels of the rows.
    """
    answers = [np.full(len(labels), answer) for answer in range(len(TASKS[task].labels))]
    scored = [glue_metric.scores(glue_metric.TASKS[task], answer, labels) for answer in answers]
    return {name: max((scores[name] for scores in scored), default=math.nan) for name in metrics_of(task)}


def gap_closed(value: float, low: float, high: float) -> float:
    """Return the fraction of the way from `low` to `high` at which a value lies.

    Between `small` and `dense` it is the f of Stosic and Stosic, 2021 (https://arxiv.org/abs/2105.12920).

    Args:
        value: The score of a variant.
        low: The score at 0.
        high: The score at 1.

    Returns:
        The fraction; NaN if `high` is not above `low`.

    Example:
        >>> gap_closed(0.75, 0.5, 1.0)
        0.5
    """
    return (value - low) / (high - low) if high > low else math.nan


def paper_metrics(task: str) -> list[str]:
    """Return the names of the metrics that papers give for a task: two for MNLI and SQuAD, one for others.

    >>> paper_metrics("stsb"), paper_metrics("qqp")
    (['spearmanr'], ['accuracy'])
    """
    names = {"stsb": ["spearmanr"], "mnli": ["accuracy", "mismatched_accuracy"], "qqp": ["accuracy"]}
    names[SQUAD] = ["exact_match", "f1"]
    return names.get(task, [TASKS[task].best])


def paper_scores(records: Sequence[Record]) -> list[float]:
    """Return the numbers that one task adds to the paper's average, each the mean over seeds.

    Args:
        records: The records of one variant on one task.

    Returns:
        One or two numbers; none for a task that the paper leaves out.
    """
    task = records[0]["task"] if records else ""
    if task not in PAPER_TASKS:
        return []
    return [mean([score(record, name) for record in records]) for name in paper_metrics(task)]


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean, or NaN if there are no values or one is not above 0.

    >>> round(geometric_mean([2.0, 8.0]), 6)
    4.0
    """
    if not values or not min(values) > 0:
        return math.nan
    return math.exp(mean([math.log(value) for value in values]))


# -- bootstrap ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """By how much one recipe scores above another on the same seeds and rows; bounds may be NaN.

    Args:
        mean: The mean over seeds.
        low: The lower bound of the 95 % interval.
        high: Its upper bound.
        seeds: How many seeds both recipes have.
        rows: Whether the replicates drew rows too, and not seeds alone.
        replicates: The differences of the replicates.
    """

    mean: float
    low: float
    high: float
    seeds: int
    rows: bool
    replicates: np.ndarray

    @classmethod
    def from_replicates(cls, value: float, replicates: np.ndarray, seeds: int, rows: bool) -> "Difference":
        """Return a difference with the interval of its replicates.

        Args:
            value: The mean over seeds.
            replicates: The differences of the replicates.
            seeds: How many seeds both recipes have.
            rows: Whether the replicates drew rows too. One seed and no rows give no interval.
        """
        low, high = math.nan, math.nan
        if (seeds > 1 or rows) and np.isfinite(replicates).any():
            low, high = map(float, np.nanpercentile(replicates, PERCENTILES))
        return cls(value, low, high, seeds, rows, replicates)


def row_scores(task: str, labels: np.ndarray | None, records: Sequence[Record]) -> dict[str, np.ndarray]:
    """Return the main metric of each trial on the rows of every replicate.

    Args:
        task: The task.
        labels: The labels of the validation rows, if they are known.
        records: The records of the trials.

    Returns:
        By name of trial, one score for each replicate; one score in all if the labels are not known.
    """
    if labels is None or any(len(record["predictions"]) != len(labels) for record in records):
        return {record["name"]: np.array([score(record)]) for record in records}
    predictions = np.array([record["predictions"] for record in records]).reshape(len(records), len(labels))
    random = generator(task, "rows")
    scores = []
    for _ in range(REPLICATES):
        rows = random.integers(len(labels), size=len(labels))
        scores.append(_main_scores(task, predictions.take(rows, axis=1), labels[rows]))
    return dict(zip((record["name"] for record in records), np.array(scores).T, strict=True))


def _main_scores(task: str, predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the main metric of each row of predictions at once; scikit-learn takes 0.4 to 10 ms for one."""
    metric = TASKS[task].best
    if task == SQUAD:  # a record has the F1 of each answer in place of its prediction
        return predictions.mean(1)
    if metric == "accuracy":
        return (predictions == labels).mean(1)
    if metric == "f1":
        hits, either = (predictions * labels).sum(1), predictions.sum(1) + labels.sum()
        return 2 * hits / np.maximum(either, 1)
    with np.errstate(invalid="ignore", divide="ignore"):  # constant predictions
        correlations = np.corrcoef(predictions, labels)[-1, :-1]  # which of two labels is Matthews'
    return np.nan_to_num(correlations) if metric == "matthews_correlation" else correlations


def paired_difference(
    ours: Mapping[int, Record], theirs: Mapping[int, Record], scores: Mapping[str, np.ndarray]
) -> Difference | None:
    """Return the paired difference of two recipes on one task.

    Args:
        ours: The records of one recipe, by seed.
        theirs: The records of the other, by seed.
        scores: The scores of the replicates, see `row_scores`.

    Returns:
        The difference over the seeds that both have; None if there is no such seed.
    """
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return None
    by_seed = np.stack([scores[ours[seed]["name"]] - scores[theirs[seed]["name"]] for seed in seeds])
    rows = by_seed.shape[1] > 1
    by_seed = np.broadcast_to(by_seed, (len(seeds), REPLICATES))
    drawn = generator(ours[seeds[0]]["task"], "seeds").integers(len(seeds), size=(REPLICATES, len(seeds)))
    replicates = by_seed[drawn, np.arange(REPLICATES)[:, None]].mean(1)
    value = mean([score(ours[seed]) - score(theirs[seed]) for seed in seeds])
    return Difference.from_replicates(value, replicates, len(seeds), rows)


def mean_difference(differences: Sequence[Difference]) -> Difference:
    """Return the difference on the mean of several tasks, whose seeds and rows are drawn independently.

    Args:
        differences: The difference on each task.
    """
    replicates = np.mean([difference.replicates for difference in differences], axis=0)
    seeds = min(difference.seeds for difference in differences)
    rows = all(difference.rows for difference in differences)
    value = mean([difference.mean for difference in differences])
    return Difference.from_replicates(value, replicates, seeds, rows)


def generator(task: str, purpose: str) -> np.random.Generator:
    """Return the random generator of a task's replicates, the same for every recipe and every rendering.

    Args:
        task: The task.
        purpose: What is drawn: "rows" or "seeds".
    """
    return np.random.default_rng(zlib.crc32(f"{task} {purpose}".encode()))
