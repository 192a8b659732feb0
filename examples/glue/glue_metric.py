"""The metrics of GLUE as an `evaluate` module that needs no network: `evaluate.load("glue_metric.py", "mrpc")`.

Given the same predictions and references it says what the official module says.
"""

import datasets
import evaluate
import numpy as np

DESCRIPTION = "Accuracy, F1, Matthews correlation, and Pearson and Spearman correlation, as each task of GLUE has them."
CITATION = "Wang et al. (2019), GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding."


def accuracy(predictions, references):
    """The fraction that is right."""
    return np.mean(predictions == references)


def f1(predictions, references):
    """Of label 1: twice the hits, over all that were predicted or should have been."""
    hits = np.sum((predictions == 1) & (references == 1))
    either = np.sum(predictions == 1) + np.sum(references == 1)
    return 2 * hits / either if either else 0.0


def matthews_correlation(predictions, references):
    """The correlation of two labellings; 0 where one of them names a single label."""
    labels = np.unique(np.concatenate([predictions, references]))
    guessed, true = (np.equal.outer(labels, side).astype(float) for side in (predictions, references))
    guessed, true = (side - side.mean(1, keepdims=True) for side in (guessed, true))
    scale = np.sqrt(np.sum(guessed**2) * np.sum(true**2))
    return np.sum(guessed * true) / scale if scale else 0.0


def pearson(predictions, references):
    """The linear correlation; NaN where one side is constant."""
    a, b = (np.asarray(side, dtype=np.float64) - np.mean(side, dtype=np.float64) for side in (predictions, references))
    scale = np.sqrt(np.sum(a**2) * np.sum(b**2))
    return np.sum(a * b) / scale if scale else np.nan


def ranks(values):
    """Places in the order from 0 on; equal values share the mean of theirs."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes)
    return (last - (sizes + 1) / 2)[group]


def spearmanr(predictions, references):
    """The linear correlation of ranks."""
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
    """The metrics of one task; `config_name` is its name, or "classification" or "regression" for data of one's own."""

    def _info(self):
        if self.config_name not in TASKS:
            raise KeyError(f"There is no task {self.config_name!r}; choose one of {', '.join(TASKS)}.")
        kind = "float32" if TASKS[self.config_name] == (pearson, spearmanr) else "int64"
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description="predictions and references: one label, or one score, for each row",
            features=datasets.Features({"predictions": datasets.Value(kind), "references": datasets.Value(kind)}),
            format="numpy",
        )

    def _compute(self, predictions, references):
        predictions, references = np.asarray(predictions), np.asarray(references)
        return {metric.__name__: float(metric(predictions, references)) for metric in TASKS[self.config_name]}
