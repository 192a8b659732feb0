"""The metrics of GLUE as an `evaluate` module that needs no network: `evaluate.load("glue_metric.py", "mrpc")`.

For the same predictions and references it gives the same numbers as the official module.
"""

import warnings
from collections.abc import Iterable
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

DESCRIPTION = "Accuracy, F1, Matthews correlation, and Pearson and Spearman correlation, as each task of GLUE has them."
CITATION = "Wang et al. (2019), GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding."
METRICS = {
    "accuracy": accuracy_score,
    "f1": f1_score,
    "matthews_correlation": matthews_corrcoef,
    "pearson": lambda *sides: np.corrcoef(*sides)[0, 1],  # NaN of a single row, which pearsonr of scipy refuses
    "spearmanr": lambda *sides: spearmanr(*sides).statistic,
}
CORRELATIONS = ("pearson", "spearmanr")
TASKS = {
    "cola": ("matthews_correlation",),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
    "stsb": CORRELATIONS,
    "regression": CORRELATIONS,
    **dict.fromkeys(
        ("sst2", "mnli", "mnli_matched", "mnli_mismatched", "qnli", "rte", "wnli", "demo", "classification"),
        ("accuracy",),
    ),
}


def scores(metrics: Iterable[str], predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """Return metrics by name. If a side is constant, a correlation of labels is 0 and one of scores is NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant sides
        return {name: float(METRICS[name](references, predictions)) for name in metrics}


class GlueMetric(evaluate.Metric):
    """The metrics of one task; `config_name` is its name, or "classification" or "regression" for data of your own."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in TASKS:
            raise KeyError(f"There is no task {self.config_name!r}; choose one of {', '.join(TASKS)}.")
        dtype = "float32" if TASKS[self.config_name] == CORRELATIONS else "int64"
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description="predictions and references: one label, or one score, for each row",
            features=datasets.Features({"predictions": datasets.Value(dtype), "references": datasets.Value(dtype)}),
            format="numpy",
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return scores(TASKS[self.config_name], np.asarray(predictions), np.asarray(references))
