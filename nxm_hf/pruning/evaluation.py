"""Evaluation: how well a model answers labelled rows, in the metric of its task, before and after it is pruned."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nxm_hf.layers.modules import eval_no_grad
from nxm_hf.pruning.calibration import longest, tokenizer_of
from nxm_hf.pruning.text_rows import read_rows

LABEL = "label"
HEAD = "ForSequenceClassification"
AT_ONCE, LENGTH = 32, 512
Scores = dict[str, float | None]


@dataclass(frozen=True)
class Evaluation:
    """Labelled rows for one model: the accuracy of its classes, or the correlations of its scores."""

    texts: list[tuple[str, ...]]  # one of each row, or two
    labels: Tensor
    regression: bool
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def of(
        cls, source: str | Path | Iterable, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> "Evaluation":
        """Rows of a file (.parquet, .csv, .tsv, .jsonl) or a list: one or two columns of text, and `label`."""
        regression = _is_regression(model)
        rows = list(read_rows(source) if isinstance(source, (str, Path)) else source)
        columns = _text_columns(rows)
        texts = [_texts(row, number, columns) for number, row in enumerate(rows, 1)]
        labels = [_label(row, number, model, regression) for number, row in enumerate(rows, 1)]
        return cls(texts, torch.tensor(labels), regression, tokenizer or tokenizer_of(model))

    def __call__(self, model: PreTrainedModel) -> Scores:
        """The metrics of a model, by name."""
        with eval_no_grad(model):
            answers = torch.cat([self._answers(model, rows) for rows in self._batches()])
        found = answers[torch.tensor([n for rows in self._batches() for n in rows]).argsort()]
        if not self.regression:
            return {"accuracy": float((found.argmax(-1) == self.labels).double().mean())}
        found, labels = found.squeeze(-1).double(), self.labels.double()
        return {"pearson": correlation(found, labels), "spearman": correlation(ranks(found), ranks(labels))}

    def _batches(self) -> list[list[int]]:
        """Numbers of rows of about the same length; one at a time where there is nothing to pad with."""
        order = sorted(range(len(self.texts)), key=lambda number: sum(map(len, self.texts[number])))
        size = 1 if self.tokenizer.pad_token is None else AT_ONCE
        return [order[begin : begin + size] for begin in range(0, len(order), size)]

    def _answers(self, model: PreTrainedModel, rows: Sequence[int]) -> Tensor:
        length = longest(model, self.tokenizer, LENGTH)
        columns = zip(*(self.texts[number] for number in rows), strict=True)
        words = dict(truncation=True, max_length=length, padding=len(rows) > 1, return_tensors="pt")
        batch = self.tokenizer(*map(list, columns), **words).to(model.device)
        return model(**batch).logits.float().cpu()


def correlation(one: Tensor, other: Tensor) -> float | None:
    """Pearson's; None where one of the two is constant, and it means nothing.

    >>> round(correlation(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.0, -1.0, -3.0])), 4)
    -1.0
    """
    one, other = one - one.mean(), other - other.mean()
    scale = float(one.norm() * other.norm())
    return float(one @ other) / scale if scale else None


def ranks(values: Tensor) -> Tensor:
    """The place of each value among all; equals share the mean of theirs.

    >>> ranks(torch.tensor([0.5, 2.0, 0.5, -1.0])).tolist()
    [1.5, 3.0, 1.5, 0.0]
    """
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double() - 1
    return (last - (counts - 1) / 2)[place]


# -- rows --------------------------------------------------------------------------------------------------------------


def _is_regression(model: Any) -> bool:
    """Whether the head gives a score, rather than classes; an error where there is no such head."""
    if not type(model).__name__.endswith(HEAD):
        raise ValueError(
            f"{type(model).__name__} has no head that answers labelled rows; an evaluation needs a model whose class "
            f"ends in {HEAD}. Leave the evaluation out."
        )
    kind, one = model.config.problem_type, model.config.num_labels == 1
    if kind == "multi_label_classification" or (kind == "regression" and not one):
        raise ValueError("This model gives several answers to a row; an evaluation needs one. Leave it out.")
    return one


def _text_columns(rows: Sequence[Any]) -> list[str]:
    if not rows or not isinstance(rows[0], Mapping):
        what = "have no columns" if rows else "are none"
        raise ValueError(
            f"The labelled rows {what}; give a .parquet, .csv, .tsv or .jsonl file with one or two columns of text and "
            f"{LABEL!r}."
        )
    columns = [name for name, value in rows[0].items() if name != LABEL and _is_text(value)]
    if LABEL not in rows[0] or len(columns) not in (1, 2):
        raise ValueError(
            f"The labelled rows have the columns {', '.join(rows[0])}, of which {', '.join(columns) or 'none'} hold "
            f"text; one or two of text and {LABEL!r} are needed. Rename or remove the others."
        )
    return columns


def _is_text(value: Any) -> bool:
    """Whether a cell is text; all cells of a CSV file are, but for those that are numbers."""
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
    given, names = row.get(LABEL), model.config.label2id
    if not regression and isinstance(given, str) and given in names:
        return names[given]
    try:
        found = float(given)
    except (TypeError, ValueError):
        found = math.nan
    if regression and math.isfinite(found):
        return found
    if not regression and found in range(model.config.num_labels):
        return int(found)
    right = "a number" if regression else f"0 to {model.config.num_labels - 1}, or one of {', '.join(map(str, names))}"
    raise ValueError(f"Labelled row {number} has the label {given!r}; this model's are {right}. Correct the file.")
