"""What a sparsity pattern is: a promise about where the zeros of a weight stand."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from nxm_hf.solvers import solve, weight_ops
from nxm_hf.solvers.weight_ops import refuse_nan


class Pattern(ABC):
    """A promise about where the zeros of a weight stand.

    Patterns are values: frozen, comparable, printable, and `parse` reads back what they print. The last
    dimension of a weight is its input (reduction) dimension. Of equal scores the lowest index is kept.
    """

    kind: ClassVar[str]
    examples: ClassVar[tuple[str, ...]]
    density: float

    @classmethod
    @abstractmethod
    def read(cls, text: str) -> "Pattern | None":
        """The pattern that `text` names, or None where it is not of this form; ValueError where it is, but wrong."""

    @abstractmethod
    def __str__(self) -> str:
        """The text that `parse` reads back."""

    @abstractmethod
    def check(self, shape: Sequence[int]) -> None:
        """Raise `ValueError` unless a weight of this shape can hold the pattern."""

    @abstractmethod
    def kept(self, shape: Sequence[int]) -> int:
        """How many weights a mask of this shape keeps."""

    @abstractmethod
    def violations(self, weight: Tensor) -> int:
        """How often a weight, or a mask, breaks the promise; NaN counts as non-zero."""

    def mask(self, scores: Tensor) -> Tensor:
        """True where a weight is kept: the mask of this pattern that keeps the most score."""
        self.check(scores.shape)
        scores = scores.detach()
        refuse_nan(scores)
        if not scores.numel():
            return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        return solve(scores, self)

    def largest(self, weight: Tensor) -> Tensor:
        """The mask that keeps the largest weights: `mask(weight.abs())`."""
        self.check(weight.shape)
        return weight_ops.largest(weight.detach(), self)

    def project(self, weight: Tensor) -> Tensor:
        """The nearest weight that holds the pattern, as a new tensor whose zeros are all +0.0."""
        self.check(weight.shape)
        return weight_ops.project(weight.detach(), self)


def rounded_share(density: float, total: int) -> int:
    """How many of `total` a density keeps: rounded, and at least one.

    >>> rounded_share(0.5, 7), rounded_share(0.01, 7), rounded_share(0.5, 0)
    (4, 1, 0)
    """
    return min(max(round(density * total), 1), total)


def check_density(density: float, example: str) -> None:
    """Raise `ValueError` unless a fraction strictly between 0 and 1 is kept."""
    if not (isinstance(density, float) and 0 < density < 1):
        raise ValueError(
            f"Density {density!r} is not between 0 and 1; it is the fraction that is kept. "
            f"Write {example!r} to keep half, or 'dense' for no pruning."
        )


def read_density(text: str, example: str) -> float:
    """The number that a text says, or a `ValueError` that shows how to write one."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a density, a fraction between 0 and 1. Write {example!r}.") from None
