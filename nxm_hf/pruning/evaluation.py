"""Evaluate a classification or regression model on labelled rows, before and after it is pruned."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nxm_hf.layers.modules import eval_no_grad
from nxm_hf.pruning.calibration import load_tokenizer, max_length
from nxm_hf.pruning.text_rows import read_rows

LABEL = "label"
HEAD = "ForSequenceClassification"
BATCH_SIZE, MAX_LENGTH = 32, 512
Scores = dict[str, float | None]


@dataclass(frozen=True)
class Evaluation:
    """Labelled rows for one model. Calling it with a model returns the model's metrics.

    Args:
        texts: One text of each row, or two.
        labels: The label of each row: a class or a score.
        regression: Whether the labels are scores.
        tokenizer: The model's tokenizer.
    """

    texts: list[tuple[str, ...]]
    labels: Tensor
    regression: bool
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def from_rows(
        cls, source: str | Path | Iterable, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> "Evaluation":
        """Read labelled rows for a model.

        Args:
            source: Rows with one or two columns of text and a column `label`: a list, or a .parquet, .csv, .tsv or
                .jsonl file.
            model: A model for sequence classification or regression.
            tokenizer: Its tokenizer; by default that of the model's own directory.

        Returns:
            The evaluation.

        Raises:
            ValueError: If the model has another head, or the rows do not fit it.
        """
        regression = _is_regression(model)
        rows: list[Any] = list(read_rows(source) if isinstance(source, (str, Path)) else source)
        columns = _text_columns(rows)
        texts = [_texts(row, number, columns) for number, row in enumerate(rows, 1)]
        labels = [_label(row, number, model, regression) for number, row in enumerate(rows, 1)]
        return cls(texts, torch.tensor(labels), regression, tokenizer or load_tokenizer(model))

    @property
    def unit(self) -> str:
        """Return what is counted in `count`."""
        return "labelled rows"

    @property
    def count(self) -> int:
        """Return the number of rows."""
        return len(self.labels)

    def __call__(self, model: PreTrainedModel) -> Scores:
        """Return the accuracy of a classifier, or the correlations of a regression model's scores with the labels.

        Args:
            model: The model; it is run in evaluation mode.

        Returns:
            Metric -> value; None for a correlation that is undefined.
        """
        with eval_no_grad(model):
            logits = torch.cat([self._logits(model, rows) for rows in self._batches()])
        logits = logits[torch.tensor([row for rows in self._batches() for row in rows]).argsort()]
        if not self.regression:
            return {"accuracy": float((logits.argmax(-1) == self.labels).double().mean())}
        scores, labels = logits.squeeze(-1).double(), self.labels.double()
        return {"pearson": pearson(scores, labels), "spearman": pearson(ranks(scores), ranks(labels))}

    def _batches(self) -> list[list[int]]:
        """Return row numbers, batched by length; one row per batch if the tokenizer cannot pad."""
        order = sorted(range(len(self.texts)), key=lambda number: sum(map(len, self.texts[number])))
        size = 1 if self.tokenizer.pad_token is None else BATCH_SIZE
        return [order[begin : begin + size] for begin in range(0, len(order), size)]

    def _logits(self, model: PreTrainedModel, rows: Sequence[int]) -> Tensor:
        length = max_length(model, self.tokenizer, MAX_LENGTH)
        columns = [list(column) for column in zip(*(self.texts[number] for number in rows), strict=True)]
        batch = self.tokenizer(
            *columns, truncation=True, max_length=length, padding=len(rows) > 1, return_tensors="pt"
        ).to(model.device)
        return model(**batch).logits.float().cpu()


def pearson(x: Tensor, y: Tensor) -> float | None:
    """Return Pearson's correlation.

    Args:
        x: Values, [rows].
        y: Other values, [rows].

    Returns:
        The correlation, or None if one of the two is constant.

    >>> round(pearson(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.0, -1.0, -3.0])), 4)
    -1.0
    """
    x, y = x - x.mean(), y - y.mean()
    scale = float(x.norm() * y.norm())
    return float(x @ y) / scale if scale else None


def ranks(values: Tensor) -> Tensor:
    """Return the rank of each value, counted from 0; equal values share their mean rank.

    Args:
        values: Any values, [rows].

    Returns:
        The ranks in fp64, [rows].

    >>> ranks(torch.tensor([0.5, 2.0, 0.5, -1.0])).tolist()
    [1.5, 3.0, 1.5, 0.0]
    """
    _, index, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double() - 1
    return (last - (counts - 1) / 2)[index]


# -- rows --------------------------------------------------------------------------------------------------------------


def _is_regression(model: PreTrainedModel) -> bool:
    """Return whether the model's head gives one score rather than classes; raise for any other head."""
    if not type(model).__name__.endswith(HEAD):
        raise ValueError(
            f"{type(model).__name__} has no head for labelled rows. An evaluation needs a model whose class ends in "
            f"{HEAD}, or a causal language model and a text. Leave the evaluation out."
        )
    problem, one_output = model.config.problem_type, model.config.num_labels == 1
    if problem == "multi_label_classification" or (problem == "regression" and not one_output):
        raise ValueError("This model has several outputs for a row; an evaluation needs one. Leave it out.")
    return one_output


def _text_columns(rows: Sequence[Any]) -> list[str]:
    if not rows or not isinstance(rows[0], Mapping):
        problem = "The labelled rows have no columns" if rows else "There are no labelled rows"
        raise ValueError(
            f"{problem}; give a .parquet, .csv, .tsv or .jsonl file with one or two columns of text and {LABEL!r}."
        )
    columns = [name for name, value in rows[0].items() if name != LABEL and _is_text(value)]
    if LABEL not in rows[0] or len(columns) not in (1, 2):
        raise ValueError(
            f"The labelled rows have the columns {', '.join(rows[0])}, of which {', '.join(columns) or 'none'} hold "
            f"text; one or two of text and {LABEL!r} are needed. Rename or remove the others."
        )
    return columns


def _is_text(value: Any) -> bool:
    """Return whether a cell is text and no number; in a CSV file all cells are strings."""
    if not isinstance(value, str):
        return False
    try:
        float(value)
    except ValueError:
        return True
    return False


def _texts(row: Mapping[str, Any], number: int, columns: Sequence[str]) -> tuple[str, ...]:
    if wrong := [column for column in columns if not isinstance(row.get(column), str)]:
        raise ValueError(f"Labelled row {number} has no text in {', '.join(wrong)}. Remove the row.")
    return tuple(row[column] for column in columns)


def _label(row: Mapping[str, Any], number: int, model: PreTrainedModel, regression: bool) -> float | int:
    label: Any = row.get(LABEL)
    classes: Mapping[str, Any] = model.config.label2id or {}
    class_count = int(model.config.num_labels or 0)
    if not regression and isinstance(label, str) and label in classes:
        return classes[label]
    try:
        value = float(label)
    except (TypeError, ValueError):
        value = math.nan
    if regression and math.isfinite(value):
        return value
    if not regression and value in range(class_count):
        return int(value)
    valid = "a number" if regression else f"0 to {class_count - 1}, or one of {', '.join(map(str, classes))}"
    raise ValueError(f"Labelled row {number} has the label {label!r}; this model's are {valid}. Correct the file.")
