"""Dense: nothing is pruned."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from torch import Tensor

from nxm_hf.patterns.base import Pattern


@dataclass(frozen=True)
class Dense(Pattern):
    """Keep every weight: the pattern of a layer that is not pruned.

    >>> Dense(), Dense().density
    (Dense(), 1.0)
    """

    kind: ClassVar[str] = "dense"
    examples: ClassVar[tuple[str, ...]] = ("dense",)

    def __str__(self) -> str:
        return self.kind

    @classmethod
    def read(cls, text: str) -> "Dense | None":
        """Return the pattern of "dense"; None for other texts.

        Args:
            text: The text, in lower case.
        """
        return cls() if text == cls.kind else None

    @property
    def density(self) -> float:
        return 1.0

    def check(self, shape: Sequence[int]) -> None:
        """Accept any shape.

        Args:
            shape: The shape of a weight.
        """

    def kept(self, shape: Sequence[int]) -> int:
        return prod(shape)

    def violations(self, weight: Tensor) -> int:
        """Return 0: every weight is dense.

        Args:
            weight: The weight, or its mask.
        """
        return 0
