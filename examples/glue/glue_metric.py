"""The metrics of GLUE as an `evaluate` module that needs no network: `evaluate.load("glue_metric.py", "mrpc")`.

For the same predictions and references it gives the same numbers as the official module.
"""

from typing import Any

import datasets
import evaluate
import numpy as np

DESCRIPTION = "Accuracy, F1, Matthews correlation, and Pearson and Spearman correlation, as each task of GLUE has them."
CITATION = "Wang et al. (2019), GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding."


def accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    """Return the fraction of predictions that are right."""
    return np.mean(predictions == references)


def f1(predictions: np.ndarray, references: np.ndarray) -> float:
    """Return F1 of label 1: twice the hits, over the number of predicted ones plus the number of true ones."""
    hits = np.sum((predictions == 1) & (references == 1))
    either = np.sum(predictions == 1) + np.sum(references == 1)
    return 2 * hits / either if either else 0.0


def matthews_correlation(predictions: np.ndarray, references: np.ndarray) -> float:
    """Return the correlation of two labellings; 0 if one of them has a single label."""
    labels = np.unique(np.concatenate([predictions, references]))
    guessed, true = (np.equal.outer(labels, side).astype(float) for side in (predictions, references))
    guessed, true = (side - side.mean(1, keepdims=True) for side in (guessed, true))
    scale = np.sqrt(np.sum(guessed**2) * np.sum(true**2))
    return np.sum(guessed * true) / scale if scale else 0.0


def pearson(predictions: np.ndarray, references: np.ndarray) -> float:
    """Return the linear correlation; NaN if one side is constant."""
    a, b = (np.asarray(side, dtype=np.float64) - np.mean(side, dtype=np.float64) for side in (predictions, references))
    scale = np.sqrt(np.sum(a**2) * np.sum(b**2))
    return np.sum(a * b) / scale if scale else np.nan


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value from 0 on; equal values share the mean of their ranks."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes)
    return (last - (sizes + 1) / 2)[group]


def spearmanr(predictions: np.ndarray, references: np.ndarray) -> float:
    """Return the linear correlation of ranks."""
    return pearson(ranks(predictions), ranks(references))


TASKS = {
    "cola": (matthews_correlation,),
    "mrpc": (accuracy, f1),
    "qqp": (accuracy, f1),
    "stsb": (pearson, spearmanr),
    "regression": (pearson, spearmanr),
    **dict.fromkeys(
        ("sst2", "mnli", "mnli_matched", "mnli_mismatched", "qnli", "rte", "wnli", "demo", "classification"),
        (accuracy,),
    ),
}


class GlueMetric(evaluate.Metric):
    """The metrics of one task; `config_name` is its name, or "classification" or "regression" for data of your own."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in TASKS:
            raise KeyError(f"There is no task {self.config_name!r}; choose one of {', '.join(TASKS)}.")
        dtype = "float32" if TASKS[self.config_name] == (pearson, spearmanr) else "int64"
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description="predictions and references: one label, or one score, for each row",
            features=datasets.Features({"predictions": datasets.Value(dtype), "references": datasets.Value(dtype)}),
            format="numpy",
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        predictions, references = np.asarray(predictions), np.asarray(references)
        return {metric.__name__: float(metric(predictions, references)) for metric in TASKS[self.config_name]}
