"""The base class of sparsity patterns: rules for where the zeros of a weight are."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from nxm_hf.solvers import solve, weight_ops
from nxm_hf.solvers.base import refuse_nan
from nxm_hf.solvers.entry_counts import EntryCounts, count_entries


class Pattern(ABC):
    """A rule for where the zeros of a weight are.

    Patterns are values: frozen, comparable, printable, and `parse` reads back what they print. The last
    dimension of a weight is its input (reduction) dimension. Of equal scores, the one with the lowest index is kept.
    """

    kind: ClassVar[str]
    examples: ClassVar[tuple[str, ...]]

    if TYPE_CHECKING:  # at run time, a property here would become the default of the field `density` of dataclasses

        @property
        def density(self) -> float:
            """Return the fraction of weights that is kept."""

    @classmethod
    @abstractmethod
    def read(cls, text: str) -> "Pattern | None":
        """Return the pattern that a text names, or None if the text is not of this class's form.

        Args:
            text: The text, in lower case and without spaces around it.

        Raises:
            ValueError: The text is of this form, but names no valid pattern.
        """

    @abstractmethod
    def __str__(self) -> str:
        """Return the text that `parse` reads back."""

    @abstractmethod
    def check(self, shape: Sequence[int]) -> None:
        """Raise an error unless a weight of this shape can hold the pattern.

        Args:
            shape: The shape of a weight.

        Raises:
            ValueError: The shape does not fit the pattern.
        """

    @abstractmethod
    def kept(self, shape: Sequence[int]) -> int:
        """Return how many weights a mask of this shape keeps.

        Args:
            shape: The shape of the mask.

        Raises:
            ValueError: The shape does not fit the pattern.
        """

    @abstractmethod
    def violations(self, weight: Tensor) -> int:
        """Return how often a weight, or a mask, breaks the rule. NaN counts as non-zero.

        Args:
            weight: The weight, or its mask.

        Raises:
            ValueError: Its shape does not fit the pattern.
        """

    def count(self, weight: Tensor) -> EntryCounts:
        """Count the non-zeros, violations, -0.0 and NaN of a weight.

        Args:
            weight: The weight.

        Raises:
            ValueError: Its shape does not fit the pattern.
        """
        return count_entries(weight)._replace(violations=self.violations(weight))

    def mask(self, scores: Tensor) -> Tensor:
        """Return the mask of this pattern that keeps the most score; True where a weight is kept.

        Args:
            scores: A score for each weight.

        Raises:
            ValueError: The shape does not fit the pattern, or a score is NaN.
        """
        self.check(scores.shape)
        scores = scores.detach()
        refuse_nan(scores)
        if not scores.numel():
            return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        return solve(scores, self)

    def largest(self, weight: Tensor) -> Tensor:
        """Return the mask that keeps the largest weights: `mask(weight.abs())`.

        Args:
            weight: The weight.

        Raises:
            ValueError: The shape does not fit the pattern, or the weight holds a NaN.
        """
        self.check(weight.shape)
        return weight_ops.magnitude_mask(weight.detach(), self)

    def nearest(self, weight: Tensor) -> Tensor:
        """Return the mask of the nearest weight, which keeps the largest sum of squares.

        For N:M and unstructured patterns it is `largest(weight)`. A transposable mask of `largest` keeps the largest
        sum of magnitudes instead, and a block mask the blocks with the largest entries.

        Args:
            weight: The weight, or scores whose squares add up to what is lost by pruning.

        Raises:
            ValueError: The shape does not fit the pattern, or the weight holds a NaN.
        """
        self.check(weight.shape)
        return weight_ops.nearest_mask(weight.detach(), self)

    def project(self, weight: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the nearest weight that holds the pattern. Its zeros are all +0.0.

        No weight of the pattern has a smaller Euclidean distance. Its mask is `nearest(weight)`.

        Args:
            weight: The weight.
            out: A contiguous tensor to write into, of the weight's type, shape and device. It may be the weight itself,
                which is partly overwritten if it holds a NaN. By default a new tensor, whose memory takes longer
                than the projection.

        Raises:
            ValueError: The shape does not fit the pattern, the weight holds a NaN, or `out` does not fit the weight.
        """
        self.check(weight.shape)
        return weight_ops.project(weight.detach(), self, out)


def kept_count(density: float, total: int) -> int:
    """Return how many of `total` a density keeps: rounded, and at least one.

    Args:
        density: The fraction that is kept.
        total: How many there are.

    Example:
        >>> kept_count(0.5, 7), kept_count(0.01, 7), kept_count(0.5, 0)
        (4, 1, 0)
    """
    return min(max(round(density * total), 1), total)


def check_density(density: float, example: str) -> None:
    """Raise an error unless a density is strictly between 0 and 1.

    Args:
        density: The fraction that is kept.
        example: A text to show in the message, which keeps half.

    Raises:
        ValueError: It is not a float between 0 and 1.
    """
    if not (isinstance(density, float) and 0 < density < 1):
        raise ValueError(
            f"Density {density!r} is not between 0 and 1; it is the fraction that is kept. "
            f"Write {example!r} to keep half, or 'dense' for no pruning."
        )


def read_density(text: str, example: str) -> float:
    """Return the density that a text names.

    Args:
        text: The text of a number.
        example: A pattern with a density, to show in the message.

    Raises:
        ValueError: The text is not a number.
    """
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a density, a fraction between 0 and 1. Write {example!r}.") from None
