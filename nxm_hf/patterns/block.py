"""Blocks: a fraction of the blocks of a weight is kept, each as a whole."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from torch import Tensor

from nxm_hf.patterns.base import Pattern, check_density, kept_count, read_density


@dataclass(frozen=True)
class Block(Pattern):
    """Keep a fraction `density` of the blocks of `rows` x `cols` weights.

    >>> str(Block(1, 4, 0.5)), str(Block(4, 4, 0.5))
    ('block:4:0.5', 'block:4x4:0.5')
    """

    rows: int
    cols: int
    density: float

    kind: ClassVar[str] = "block"
    examples: ClassVar[tuple[str, ...]] = ("block:4:0.5", "block:4x4:0.5", "block:2x4:0.3")

    def __post_init__(self) -> None:
        if type(self.rows) is not int or type(self.cols) is not int or min(self.rows, self.cols) < 1:
            raise ValueError(
                f"A block of {self.rows}x{self.cols} weights is empty or broken; both sides need a whole number >= 1. "
                "Write 'block:4:0.5' for 1x4 blocks, or 'block:4x4:0.5'."
            )
        check_density(self.density, "block:4x4:0.5")

    def __str__(self) -> str:
        return f"block:{self.size}:{self.density}"

    @property
    def size(self) -> str:
        """Return the size of a block as text: "4" for 1x4, else "4x4"."""
        return str(self.cols) if self.rows == 1 else f"{self.rows}x{self.cols}"

    @classmethod
    def read(cls, text: str) -> "Block | None":
        """Return the pattern of "block:4:0.5" (1x4) or "block:4x4:0.5"; None for texts of other forms.

        Args:
            text: The text, in lower case.
        """
        form, _, rest = text.partition(":")
        if form != cls.kind:
            return None
        match = re.fullmatch(r"(?:(\d+)x)?(\d+):(.*)", rest)
        if not match:
            raise ValueError(f"{text!r} lacks a block size or a density. Write 'block:4:0.5' or 'block:4x4:0.5'.")
        rows, cols, density = match.groups()
        return cls(int(rows or 1), int(cols), read_density(density, "block:4x4:0.5"))

    def check(self, shape: Sequence[int]) -> None:
        height = shape[-2] if len(shape) > 1 else 1
        if not shape or height % self.rows or shape[-1] % self.cols:
            raise ValueError(
                f"A weight of shape {tuple(shape)} does not split into {self.rows}x{self.cols} blocks; it needs "
                "multiples of those along its last two dimensions. Leave it out with `exclude=` or choose other blocks."
            )

    def kept(self, shape: Sequence[int]) -> int:
        return self.kept_blocks(shape) * self.rows * self.cols

    def kept_blocks(self, shape: Sequence[int]) -> int:
        """Return how many blocks a mask of this shape keeps.

        Args:
            shape: The shape of the mask.

        Raises:
            ValueError: The shape does not split into blocks.
        """
        self.check(shape)
        return kept_count(self.density, prod(shape) // (self.rows * self.cols))

    def tiles(self, weight: Tensor) -> Tensor:
        """Return a view of a weight as its blocks: (..., height, width) -> (..., R, rows, C, cols).

        Args:
            weight: A weight whose shape splits into blocks.
        """
        weight = weight if weight.dim() > 1 else weight.unsqueeze(0)
        height, width = weight.shape[-2:]
        return weight.unflatten(-1, (width // self.cols, self.cols)).unflatten(-3, (height // self.rows, self.rows))

    def violations(self, weight: Tensor) -> int:
        """Return how many non-zero blocks there are beyond the allowed number.

        Args:
            weight: The weight, or its mask.
        """
        allowed = self.kept_blocks(weight.shape)
        return max(0, int((self.tiles(weight) != 0).any(-1).any(-2).sum()) - allowed)
