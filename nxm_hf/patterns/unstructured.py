"""Unstructured: a fraction of the weights is kept, wherever they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from torch import Tensor

from nxm_hf.patterns.base import Pattern, check_density, kept_count, read_density
from nxm_hf.solvers.entry_counts import EntryCounts, count_entries


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Keep a fraction `density` of the whole tensor.

    >>> str(Unstructured(0.1)), Unstructured(0.1).kept((10, 10))
    ('unstructured:0.1', 10)
    """

    density: float

    kind: ClassVar[str] = "unstructured"
    examples: ClassVar[tuple[str, ...]] = ("unstructured:0.5", "unstructured:0.07")

    def __post_init__(self) -> None:
        check_density(self.density, "unstructured:0.5")

    def __str__(self) -> str:
        return f"unstructured:{self.density}"

    @classmethod
    def read(cls, text: str) -> "Unstructured | None":
        """Return the pattern of "unstructured:0.5"; None for texts of other forms.

        Args:
            text: The text, in lower case.
        """
        form, _, density = text.partition(":")
        return cls(read_density(density, "unstructured:0.5")) if form == cls.kind else None

    def check(self, shape: Sequence[int]) -> None:
        """Accept any shape.

        Args:
            shape: The shape of a weight.
        """

    def kept(self, shape: Sequence[int]) -> int:
        return kept_count(self.density, prod(shape))

    def violations(self, weight: Tensor) -> int:
        """Return how many non-zeros there are beyond the allowed number.

        Args:
            weight: The weight, or its mask.
        """
        return self.count(weight).violations

    def count(self, weight: Tensor) -> EntryCounts:
        counts = count_entries(weight)
        return counts._replace(violations=max(0, counts.nonzeros - self.kept(weight.shape)))
