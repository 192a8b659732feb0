"""Transposable N:M: a weight and its transpose both hold N:M."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from nxm_hf.patterns.base import Pattern
from nxm_hf.patterns.nm import NM, check_counts
from nxm_hf.solvers.entry_counts import EntryCounts, count_full_columns

LARGEST_TILE = 32


@dataclass(frozen=True)
class Transposable(Pattern):
    """Keep `n` in every row and every column of each `m` x `m` tile, so that the backward pass is sparse too.

    >>> str(Transposable(2, 4)), Transposable(2, 4).density
    ('2:4-transposable', 0.5)
    """

    n: int
    m: int

    kind: ClassVar[str] = "transposable"
    examples: ClassVar[tuple[str, ...]] = (
        "2:4-transposable",
        "1:4-transposable",
        "3:4-transposable",
        "4:8-transposable",
        "3:5-transposable",
    )

    def __post_init__(self) -> None:
        check_counts(self.n, self.m)
        if self.m > LARGEST_TILE:
            raise ValueError(
                f"'{self}' has tiles of {self.m}x{self.m}; transposable patterns need M <= {LARGEST_TILE}. "
                f"Write '16:32-transposable', or '{self.side}' for rows alone."
            )

    def __str__(self) -> str:
        return f"{self.n}:{self.m}-transposable"

    @classmethod
    def read(cls, text: str) -> "Transposable | None":
        """Return the pattern of "2:4-transposable"; None for texts of other forms.

        Args:
            text: The text, in lower case.
        """
        match = re.fullmatch(r"(\d+):(\d+)-transposable", text)
        return cls(int(match[1]), int(match[2])) if match else None

    @property
    def density(self) -> float:
        return self.n / self.m

    @property
    def side(self) -> NM:
        """Return the pattern that the weight and its transpose hold."""
        return NM(self.n, self.m)

    def check(self, shape: Sequence[int]) -> None:
        if len(shape) < 2 or shape[-1] % self.m or shape[-2] % self.m:
            raise ValueError(
                f"A weight of shape {tuple(shape)} does not split into {self.m}x{self.m} tiles; {self} needs multiples "
                f"of {self.m} along the last two dimensions. Leave this weight out with `exclude=`."
            )

    def kept(self, shape: Sequence[int]) -> int:
        self.check(shape)
        return self.side.kept(shape)

    def violations(self, weight: Tensor) -> int:
        """Return how many groups along either side have more than `n` non-zeros.

        Args:
            weight: The weight, or its mask.
        """
        return self.count(weight).violations

    def count(self, weight: Tensor) -> EntryCounts:
        self.check(weight.shape)
        rows, columns = self.side.count(weight), count_full_columns(weight, self.n, self.m)
        return rows._replace(violations=rows.violations + columns)
