"""The backend for CPUs: the same masks by vector instructions. Needs numba: `pip install nxm-hf[fast]`.

numba is imported, and a kernel compiled and tested, at the first tensor that is large enough. If numba is missing or
does not work here, torch computes the masks.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from nxm_hf.solvers import self_test
from nxm_hf.solvers.backend import GROUP_SIZES, Backend, Kernels
from nxm_hf.solvers.base import FLOATS, NMPattern, PatternLike, SizedPattern, Solver, solve_alone
from nxm_hf.solvers.kept_entries import KeptEntries
from nxm_hf.solvers.self_test import Counts
from nxm_hf.solvers.transposable_duals import by_duals

LANES = 16  # entries of a vector
PARTS_CONVERTED = 4  # of a weight in half precision, at a time: each gets a copy in fp32
IN_CACHE = 2**16  # entries that are written, and then looked at while they are in the second cache of a core

# Strips of tiles or parts of them, (strips, m, width), and flags of the parts that they are -> their masks.
TileSolver = Callable[[Tensor, Tensor | None], Tensor]


class _CPUKernels(Kernels, Protocol):
    """The functions of `launch`, except the operations on N:M groups."""

    def counter(self, n: int, m: int, dtype: torch.dtype) -> Callable[[int, int], int]: ...

    def block_sums(self, rows: int, columns: int) -> Callable[[np.ndarray, np.ndarray], int]: ...

    def magnitude_solver(self, n: int, m: int, dtype: torch.dtype) -> Callable[[int, int, int], int]: ...

    def equal_words(self) -> Callable[[np.ndarray, np.ndarray], int]: ...

    def over_tiles(
        self, n: int, m: int, scores: Sequence[Tensor], masks: Sequence[Tensor], magnitudes: bool = False
    ) -> int: ...

    def adamw(self, rounding: int, weights: Sequence[tuple[Tensor, ...]], pulls: bool = False) -> None: ...

    def can_gather(self) -> bool: ...

    def compare_entries(self, old: Tensor, new: Tensor, flags: np.ndarray, room: np.ndarray) -> int: ...

    def keep_entries(
        self,
        source: Tensor,
        mask: Tensor | Callable[[int, int], int],
        out: Tensor,
        flags: np.ndarray,
        room: np.ndarray,
        look: Callable[[int, int], None] | None = None,
    ) -> int: ...

    def restore_entries(self, entries: Tensor, flags: np.ndarray, room: np.ndarray, same: bool) -> None: ...

    def adamw_of_kept(self, rounding: int, weights: Sequence[tuple[KeptEntries, tuple[Tensor, ...]]]) -> None: ...

    def nearest_tiles(
        self,
        n: int,
        m: int,
        weights: Sequence[Tensor],
        masks: Sequence[Tensor],
        solve: TileSolver,
    ) -> int: ...

    def project_tiles(
        self,
        n: int,
        m: int,
        weights: Sequence[Tensor],
        outs: Sequence[Tensor],
        solve: TileSolver,
    ) -> int: ...

    def highest_of_row(self, scores: Tensor, count: int, mask: Tensor, magnitudes: bool = False) -> int: ...


def _load() -> _CPUKernels:
    from nxm_hf.solvers.cpu import launch

    return launch


BACKEND = Backend("cpu", "numba", _load, groups_at_once=LANES)


def supports_tiles(scores: Tensor, pattern: NMPattern) -> bool:
    """Return whether a kernel for transposable masks supports these scores and passes its self-test.

    Args:
        scores: The scores.
        pattern: The transposable pattern. The rows of its tiles must fill whole vectors.
    """
    n, m = pattern.n, pattern.m
    if m not in GROUP_SIZES[1:] or scores.dtype not in FLOATS or not BACKEND.available(scores):
        return False

    def run(scores: Tensor, mask: Tensor) -> None:
        BACKEND.kernels.over_tiles(n, m, [scores], [mask])

    return BACKEND.passes(f"mask of {n}:{m}-transposable", self_test.tiles_are_right, run, by_duals, Counts(n, m))


def supports_rows(scores: Tensor, pattern: SizedPattern) -> bool:
    """Return whether a kernel for unstructured masks supports these scores and passes its self-test.

    Args:
        scores: The scores, of any shape.
        pattern: The unstructured pattern; it is not used.
    """
    if scores.dtype not in FLOATS or not BACKEND.available(scores):
        return False

    def run(scores: Tensor, count: int, mask: Tensor) -> None:
        BACKEND.kernels.highest_of_row(scores, count, mask)

    return BACKEND.passes("mask of unstructured", self_test.row_is_right, run)


def by_cpu_network(scores: Tensor, pattern: NMPattern) -> Tensor:
    """Keep the n highest scores of every group, by a comparison network over sixteen groups at a time.

    Args:
        scores: The scores, whose groups fill whole vectors.
        pattern: The N:M pattern.
    """
    return solve_alone(BACKEND.fill_masks, scores, pattern)


def by_cpu_duals(scores: Tensor, pattern: NMPattern) -> Tensor:
    """Keep n entries in each row and column with the largest total score, by prices for sixteen tiles at a time.

    Args:
        scores: The scores.
        pattern: The transposable pattern.
    """
    return solve_alone(_fill_tiles, scores, pattern)


def _fill_tiles(scores: Sequence[Tensor], pattern: NMPattern, masks: Sequence[Tensor]) -> None:
    BACKEND.kernels.over_tiles(pattern.n, pattern.m, [each.float().contiguous() for each in scores], masks)


def by_cpu_threshold(scores: Tensor, pattern: SizedPattern) -> Tensor:
    """Keep the highest scores of the whole tensor, by a threshold that a sample brackets.

    Args:
        scores: The scores.
        pattern: The unstructured pattern.
    """
    return solve_alone(_fill_rows, scores, pattern)


def _fill_rows(scores: Sequence[Tensor], pattern: SizedPattern, masks: Sequence[Tensor]) -> None:
    for each, mask in zip(scores, masks, strict=True):
        row = each.float().contiguous().view(-1)
        BACKEND.kernels.highest_of_row(row, pattern.kept(each.shape), mask.view(-1))


def supports_magnitudes(weight: Tensor, pattern: PatternLike) -> bool:
    """Return whether a kernel reads a weight as its own scores, so that |weight| is never written to memory.

    Args:
        weight: The weight.
        pattern: The pattern of the mask. Of plain N:M the operations on groups do the same.
    """
    return pattern.kind in ("transposable", "unstructured") and SOLVERS[pattern.kind].supports(weight, pattern)


def fill_magnitude_mask(weight: Tensor, pattern: Any, mask: Tensor) -> int:
    """Write the mask of |weight|.

    Args:
        weight: A weight that is supported.
        pattern: The pattern of the mask.
        mask: A contiguous bool tensor of its shape.

    Returns:
        0, or -1 where the weight holds a NaN.
    """
    numbers = weight.float().contiguous()
    if pattern.kind == "transposable":
        return BACKEND.kernels.over_tiles(pattern.n, pattern.m, [numbers], [mask], magnitudes=True)
    kept = pattern.kept(weight.shape)
    return BACKEND.kernels.highest_of_row(numbers.view(-1), kept, mask.view(-1), magnitudes=True)


def supports_nearest_tiles(
    weight: Tensor, pattern: NMPattern, careful: TileSolver, reference: Callable[[Tensor, NMPattern], Tensor]
) -> bool:
    """Return whether a kernel adds up squares of a weight as it reads them, and passes its self-test.

    Args:
        weight: The weight.
        pattern: The transposable pattern.
        careful: See `fill_nearest_tiles`.
        reference: Return the mask that is expected of the kernel.
    """

    def run(weight: Tensor, mask: Tensor) -> None:
        fill_nearest_tiles([weight], pattern, [mask], careful)

    name, test = f"nearest mask of {pattern.n}:{pattern.m}-transposable", self_test.tiles_are_right
    return supports_tiles(weight, pattern) and BACKEND.passes(name, test, run, reference, pattern, True)


def fill_nearest_tiles(
    weights: Sequence[Tensor], pattern: NMPattern, masks: Sequence[Tensor], careful: TileSolver
) -> int:
    """Write the transposable masks that keep the largest sums of squares.

    Args:
        weights: Weights that are supported and contiguous, or parts of one, all of one type.
        pattern: The transposable pattern.
        masks: Contiguous bool tensors of their shapes.
        careful: Return the masks of strips of tiles whose squares need more care. It is called once for each weight
            that has any, and once for the rest of its width that fills no vector.

    Returns:
        0, or -1 where a weight holds a NaN.
    """
    step = len(weights) if weights[0].dtype == torch.float32 else PARTS_CONVERTED
    found = 0
    for at in range(0, len(weights), step):
        numbers = [each.float() for each in weights[at : at + step]]
        found |= BACKEND.kernels.nearest_tiles(pattern.n, pattern.m, numbers, masks[at : at + step], careful)
    return found


def supports_projected_tiles(weight: Tensor, pattern: NMPattern, careful: TileSolver) -> bool:
    """Return whether a kernel writes nearest weights as it finds their masks, and passes its self-test.

    There is one for fp32 and tiles larger than 4 x 4.

    Args:
        weight: A weight that `supports_nearest_tiles`.
        pattern: The transposable pattern.
        careful: See `fill_nearest_tiles`.
    """

    def project(weight: Tensor, out: Tensor) -> None:
        project_tiles([weight], pattern, [out], careful)

    def nearest(weight: Tensor, mask: Tensor) -> None:
        fill_nearest_tiles([weight], pattern, [mask], careful)

    if pattern.m == GROUP_SIZES[1] or weight.dtype != torch.float32:
        return False
    name, test = f"projection of {pattern.n}:{pattern.m}-transposable", self_test.projection_is_right
    return BACKEND.passes(name, test, project, nearest, pattern.m)


def project_tiles(weights: Sequence[Tensor], pattern: NMPattern, outs: Sequence[Tensor], careful: TileSolver) -> int:
    """Write what the masks of `fill_nearest_tiles` keep, and +0.0 elsewhere and for -0.0.

    Args:
        weights: Weights that are supported, or parts of one.
        pattern: The transposable pattern.
        outs: Contiguous tensors of their types and shapes; they may be the weights themselves.
        careful: See `fill_nearest_tiles`.

    Returns:
        0, or -1 where a weight holds a NaN.
    """
    return BACKEND.kernels.project_tiles(pattern.n, pattern.m, weights, outs, careful)


SOLVERS: dict[str, Solver[Any]] = {
    "nm": Solver(by_cpu_network, BACKEND.supports_mask, BACKEND.fill_masks),
    "transposable": Solver(by_cpu_duals, supports_tiles, _fill_tiles),
    "unstructured": Solver(by_cpu_threshold, supports_rows, _fill_rows),
}
