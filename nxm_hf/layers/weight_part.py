"""Parts of a weight: how one process sees a weight of which it holds a part, and the mask of that part."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from nxm_hf.layers.find import Layer
from nxm_hf.layers.histogram_threshold import keep_highest_of_all
from nxm_hf.layers.sharding import Shards, is_cut_by_inputs, tiles_are_whole
from nxm_hf.patterns import NM, Block, Dense, Pattern, Transposable, Unstructured
from nxm_hf.solvers.base import refuse_nan
from nxm_hf.solvers.block_topk import block_maxima, fill_blocks
from nxm_hf.solvers.nearest import block_squares
from nxm_hf.solvers.unstructured_threshold import keep_highest
from nxm_hf.solvers.weight_ops import keep

GATHERED = 2**20  # bytes: up to this size scores are gathered; two histograms have this size


@dataclass(frozen=True)
class WeightPart:
    """This process's part of the weight of one layer.

    Args:
        shards: The processes that share the weight.
        layer: The layer.
    """

    shards: Shards = field(repr=False)
    layer: Layer

    def total(self, numbers: Tensor) -> Tensor:
        """Add up numbers over the processes. Every process calls this.

        Args:
            numbers: The numbers of this process.
        """
        return self.shards.total(numbers)

    def largest(self, number: Tensor) -> Tensor:
        """Return the largest of the numbers of all processes. Every process calls this.

        Args:
            number: The number of this process.
        """
        return self.shards.largest(number)

    def gather(self, part: Tensor) -> Tensor:
        """Return the matrix [out, in] that the processes hold parts of. Every process calls this.

        Args:
            part: The part that this process holds of it.
        """
        return self.shards.whole(self.layer, part)

    def of(self, whole: Tensor) -> Tensor:
        """Return this process's part of a matrix [out, in].

        Args:
            whole: The matrix.
        """
        return self.shards.part(self.layer, whole)

    def keep_highest(self, scores: Tensor, count: int, shape: tuple[int, int] | None = None) -> Tensor:
        """Return this process's part of the mask that one process with all scores computes. Every process calls this.

        Args:
            scores: The scores of this process, in rows.
            count: How many entries to keep in all processes together. Of equal scores the first are kept.
            shape: The shape of all scores together; by default the shape of the weight.
        """
        rows, columns = shape or self.layer.shape
        if self.is_by_rows and rows * columns * scores.element_size() > GATHERED:
            return keep_highest_of_all(scores, count, self.shards)
        whole = self.shards.whole(self.layer, scores, (rows, columns))
        refuse_nan(whole)
        return self.of(keep_highest(whole.flatten(), count).view(rows, columns))

    def random(self, generator: torch.Generator) -> Tensor:
        """Return this process's part of random numbers between 0 and 1, the same numbers as in one process.

        Args:
            generator: The generator, in the same state in all processes.
        """
        return self.of(torch.rand(self.layer.shape, generator=generator, device="cpu"))

    @property
    def is_by_rows(self) -> bool:
        """Return True if parts are runs of rows of the matrix, and False if they are runs of columns."""
        return not is_cut_by_inputs(self.layer)

    def holds_whole(self, rows: int, columns: int) -> bool:
        """Return True if no process gets a part of a tile.

        Args:
            rows: Rows of a tile.
            columns: Columns of a tile.
        """
        return tiles_are_whole(self.layer, rows, columns, self.shards.processes)

    def pattern(self, pattern: Pattern) -> Pattern:
        """Return the form of a pattern that solves, projects and counts in this part.

        Args:
            pattern: The pattern of the whole weight.

        Returns:
            The pattern itself if the mask of this part depends on this part alone; else a `SharedPattern`.
        """
        match pattern:
            case Dense():
                is_local = True
            case NM():
                is_local = self.holds_whole(1, pattern.m)
            case Transposable():
                is_local = self.holds_whole(pattern.m, pattern.m)
            case _:
                is_local = False
        return pattern if is_local else SharedPattern(pattern, self)


@dataclass(frozen=True)
class SharedPattern(Pattern):
    """A pattern for a process that holds a part of a weight. Its masks are parts of the masks of the whole weight.

    Every process calls its methods, in the same order. If a score is NaN in one process, they raise in all.
    """

    pattern: Pattern
    part: WeightPart

    kind: ClassVar[str] = "shared"
    examples: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def read(cls, text: str) -> None:
        """Return None, because no text names a `SharedPattern`.

        Args:
            text: Not used.
        """

    def __str__(self) -> str:
        return str(self.pattern)

    def check(self, shape: Sequence[int]) -> None:
        """Accept any shape, because the plan has checked the shape of the whole weight.

        Args:
            shape: The shape of the part.
        """

    def kept(self, shape: Sequence[int]) -> int:
        """Return how many entries a mask of the whole weight keeps.

        Args:
            shape: The shape of the part.
        """
        return self.pattern.kept(self.part.layer.shape)

    def violations(self, weight: Tensor) -> int:
        """Return how often the whole weight violates the pattern.

        Args:
            weight: The part of the weight, or of its mask.
        """
        return self.pattern.violations(self.part.gather(weight != 0))

    def mask(self, scores: Tensor) -> Tensor:
        scores, pattern = scores.detach(), self.pattern
        if isinstance(pattern, Unstructured):
            return self.part.keep_highest(scores, self.kept(scores.shape))
        if isinstance(pattern, Block) and self._holds_blocks(pattern):
            return self._keep_blocks(block_maxima(scores, pattern), scores, pattern)
        return self._solve(pattern.mask, scores)

    def nearest(self, weight: Tensor) -> Tensor:
        weight, pattern = weight.detach(), self.pattern
        if isinstance(pattern, Unstructured):
            return self.mask(weight.abs())
        # In fp64, squares are scaled by the largest weight of all processes.
        if isinstance(pattern, Block) and self._holds_blocks(pattern) and weight.dtype != torch.float64:
            return self._keep_blocks(block_squares(weight, pattern), weight, pattern)
        return self._solve(pattern.nearest, weight)

    def project(self, weight: Tensor, out: Tensor | None = None) -> Tensor:
        weight = weight.detach()
        projected = torch.empty_like(weight) if out is None else out
        projected.copy_(weight)
        keep(projected, self.nearest(weight))
        return projected

    def _solve(self, solve: Callable[[Tensor], Tensor], scores: Tensor) -> Tensor:
        """Solve the mask of gathered scores where it overlaps this process's part."""
        whole, part = self.part.gather(scores), self.part
        refuse_nan(whole)  # in all processes
        if isinstance(self.pattern, NM | Transposable):
            return part.shards.solve_part(part.layer, whole, self.pattern.m, solve)
        return part.of(solve(whole))

    def _holds_blocks(self, pattern: Block) -> bool:
        return self.part.is_by_rows and self.part.holds_whole(pattern.rows, pattern.cols)

    def _keep_blocks(self, block_scores: Tensor, weight: Tensor, pattern: Block) -> Tensor:
        rows, columns = self.part.layer.shape
        blocks = (rows // pattern.rows, columns // pattern.cols)
        kept = self.part.keep_highest(block_scores, pattern.kept_blocks((rows, columns)), blocks)
        return fill_blocks(kept, weight, pattern)
