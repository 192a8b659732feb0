"""N:M: of every M consecutive weights, at most N are non-zero."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from torch import Tensor

from nxm_hf.patterns.base import Pattern
from nxm_hf.solvers.entry_counts import EntryCounts, count_entries


@dataclass(frozen=True)
class NM(Pattern):
    """Keep `n` of every `m` consecutive weights along the last dimension.

    >>> str(NM(2, 4)), NM(2, 4).density
    ('2:4', 0.5)
    """

    n: int
    m: int

    kind: ClassVar[str] = "nm"
    examples: ClassVar[tuple[str, ...]] = ("2:4", "1:4", "4:8", "3:5", "1:2", "33:40")

    def __post_init__(self) -> None:
        check_counts(self.n, self.m)

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @classmethod
    def read(cls, text: str) -> "NM | None":
        """Return the pattern of "2:4", or "4x2" (group x kept) as in the NxMTransformer paper; else None.

        Args:
            text: The text, in lower case.
        """
        if match := re.fullmatch(r"(\d+):(\d+)", text):
            return cls(int(match[1]), int(match[2]))
        if match := re.fullmatch(r"(\d+)x(\d+)", text):
            return cls._read_group_by_kept(int(match[1]), int(match[2]))
        return None

    @classmethod
    def _read_group_by_kept(cls, group: int, kept: int) -> "NM":
        if group < kept:
            raise ValueError(
                f"'{group}x{kept}' has two readings: group x kept, as in the NxMTransformer paper, would keep "
                f"{kept} of every {group}; kept x group would keep {group} of every {kept}. "
                f"For the second, write '{group}:{kept}'."
            )
        return cls(kept, group)

    @property
    def density(self) -> float:
        return self.n / self.m

    def check(self, shape: Sequence[int]) -> None:
        if not shape or shape[-1] % self.m:
            width = f"width {shape[-1]}" if shape else "no dimension"
            raise ValueError(
                f"A weight of shape {tuple(shape)} has {width}; {self} needs a multiple of {self.m} along the last "
                "dimension. Leave this weight out with `exclude=`, or choose another M."
            )

    def kept(self, shape: Sequence[int]) -> int:
        self.check(shape)
        return prod(shape) // self.m * self.n

    def violations(self, weight: Tensor) -> int:
        """Return how many groups have more than `n` non-zeros.

        Args:
            weight: The weight, or its mask.
        """
        return self.count(weight).violations

    def count(self, weight: Tensor) -> EntryCounts:
        self.check(weight.shape)
        return count_entries(weight, self.n, self.m)


def check_counts(n: int, m: int) -> None:
    """Raise an error unless 1 <= N < M <= 256.

    Args:
        n: Kept entries of a group.
        m: Entries of a group.

    Raises:
        ValueError: They are not two such whole numbers.
    """
    if type(n) is not int or type(m) is not int:
        raise ValueError(f"N:M needs two whole numbers; got {n!r} and {m!r}. Write '2:4', or NM(2, 4).")
    if 0 < m < n <= 256:
        raise ValueError(f"'{n}:{m}' would keep {n} of every {m}; N:M keeps N of every M. Write '{m}:{n}'.")
    if not 1 <= n < m <= 256:
        raise ValueError(
            f"'{n}:{m}' would keep {n} of every {m}; N:M needs 1 <= N < M <= 256. "
            "Write '2:4' to keep 2 of every 4, or 'dense' for no pruning."
        )
