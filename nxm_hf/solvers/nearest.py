"""The masks of nearest weights: they keep the largest sum of squares, so the pruned entries have the least norm.

N:M, unstructured and dense masks depend on the order of scores alone, so |w| and w^2 give the same mask. Masks of
transposable tiles and of blocks depend on sums of scores, so those of |w| and of w^2 differ.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nxm_hf.solvers import cpu, solve
from nxm_hf.solvers.base import BlockPattern, NMPattern, refuse_nan
from nxm_hf.solvers.block_topk import fill_blocks
from nxm_hf.solvers.unstructured_threshold import keep_highest

# Solvers round scores to about 1e-8 of a tile's largest. A tile is solved more finely if its pruned squares together
# are less than this share of its largest square.
ROUGH = 1 / 64
PART = 2**20  # entries processed at a time: they stay in a CPU's last cache


def nearest_tiles(weight: Tensor, pattern: NMPattern) -> Tensor:
    """Return the transposable mask that keeps the largest sum of squares in every tile.

    Args:
        weight: A contiguous weight, whose shape fits the pattern.
        pattern: The transposable pattern.

    Raises:
        ValueError: The weight holds a NaN.
    """
    careful = partial(_nearest_careful, pattern)
    if cpu.supports_nearest_tiles(weight, pattern, careful, nearest_tiles):
        mask = torch.empty(weight.shape, dtype=torch.bool, device=weight.device)
        if cpu.fill_nearest_tiles(_parts(weight, pattern), pattern, _parts(mask, pattern), careful) < 0:
            refuse_nan(weight)
        return mask
    refuse_nan(weight)
    kept = [_nearest_strips(part, pattern) for part in _parts(weight, pattern)]
    return (kept[0] if len(kept) == 1 else torch.cat(kept)).view(weight.shape)


def supports_projection(weight: Tensor, pattern: NMPattern) -> bool:
    """Return whether `project_tiles` has a kernel for a weight.

    Args:
        weight: A contiguous weight, whose shape fits the pattern.
        pattern: The transposable pattern.
    """
    careful = partial(_nearest_careful, pattern)
    supported = cpu.supports_nearest_tiles(weight, pattern, careful, nearest_tiles)
    return supported and cpu.supports_projected_tiles(weight, pattern, careful)


def project_tiles(weight: Tensor, pattern: NMPattern, out: Tensor) -> None:
    """Write the nearest weight that holds a transposable pattern, in one pass.

    Args:
        weight: A weight that is supported.
        pattern: The transposable pattern.
        out: A contiguous tensor like the weight; it may be the weight itself.

    Raises:
        ValueError: The weight holds a NaN.
    """
    careful = partial(_nearest_careful, pattern)
    if cpu.project_tiles(_parts(weight, pattern), pattern, _parts(out, pattern), careful) < 0:
        refuse_nan(weight)


def _parts(entries: Tensor, pattern: NMPattern) -> tuple[Tensor, ...]:
    """Return views of parts of a weight or mask, as strips of tiles, (strips, m, width)."""
    strips = entries.view(-1, pattern.m, entries.shape[-1])
    parts = min(len(strips), max(1, entries.numel() // PART)) if entries.device.type == "cpu" else 1
    return strips.tensor_split(parts)


def _nearest_careful(pattern: NMPattern, strips: Tensor, places: Tensor | None) -> Tensor:
    """Return the masks of strips of tiles that a kernel has left: those of `_nearest_strips`, found by kernels.

    Args:
        pattern: The transposable pattern.
        strips: Parts of strips side by side, (parts, m, width).
        places: Flags of the parts that these are, for each strip; None if the strips are whole.
    """
    return _nearest_strips(strips, pattern, cpu.by_cpu_duals, places)


def _nearest_strips(
    strips: Tensor,
    pattern: NMPattern,
    solver: Callable[[Tensor, NMPattern], Tensor] = solve,
    places: Tensor | None = None,
) -> Tensor:
    """Return the masks of strips of tiles, (strips, m, width). `solver` finds those that keep the most of squares."""
    m = pattern.m
    squares = _scaled_squares(strips, m)
    kept = solver(squares, pattern)
    peak = squares.amax(1).unflatten(1, (-1, m)).amax(-1)
    # Faster than `masked_fill`. A kept infinity makes the sum NaN, so its tile is not refined. It need not be: solvers
    # keep the digits of other scores beside an infinity.
    left = squares * (~kept).view(torch.uint8)
    pruned = (left.sum(1) if places is None else _sums_in_place(left, places)).unflatten(1, (-1, m)).sum(-1)
    if (rough := (0 < pruned) & (pruned < ROUGH * peak)).any():
        tiles, found = (x.unflatten(2, (-1, m)).transpose(1, 2) for x in (squares, kept))
        found[rough] = _refine(tiles[rough], found[rough], pruned[rough], pattern, solver)  # views: this edits `kept`
    return kept


def _sums_in_place(parts: Tensor, places: Tensor) -> Tensor:
    """Return the sums of the columns of parts of strips, with the bits that sums of whole strips have.

    torch adds up some columns in another order than others. So each part goes to its place in a strip first.

    Args:
        parts: The parts, (parts, m, width).
        places: Flags of the parts that these are, for each strip.
    """
    strip, column = (places.cumsum(0) - 1)[places], places.nonzero()[:, 1]
    shape = int(strip.max()) + 1, places.shape[1], *parts.shape[1:]
    whole = parts.new_zeros(shape).transpose(1, 2).contiguous()
    whole.transpose(1, 2)[strip, column] = parts
    return whole.flatten(2).sum(1).view(shape[0], shape[1], -1)[strip, column]


def _scaled_squares(strips: Tensor, m: int) -> Tensor:
    """Return the squares of strips of tiles, (strips, m, width), in fp32 or wider.

    Each tile is divided by a power of two near its largest finite magnitude first. This is exact, and neither overflows
    nor makes all squares of a tile vanish.
    """
    values = strips.to(torch.promote_types(strips.dtype, torch.float32))
    peak = values.abs().amax(1).unflatten(1, (-1, m)).amax(-1)
    if peak.isinf().any():
        peak = values.masked_fill(values.isinf(), 0).abs().amax(1).unflatten(1, (-1, m)).amax(-1)
    scale = _power_of_two(peak).repeat_interleave(m, 1)[:, None]
    return (values / scale).square_()


def _power_of_two(numbers: Tensor) -> Tensor:
    """Return the largest power of two up to each number, clamped between the least normal float and its inverse."""
    tiny = torch.finfo(numbers.dtype).tiny
    numbers = numbers.clamp(tiny, 1 / tiny)
    return numbers / (2 * torch.frexp(numbers).mantissa)  # exact: only the exponent is left


def _refine(
    tiles: Tensor, kept: Tensor, pruned: Tensor, pattern: NMPattern, solver: Callable[[Tensor, NMPattern], Tensor]
) -> Tensor:
    """Solve tiles again, if their largest squares leave too few digits for the others; return their masks.

    Take the sum of the squares that some mask prunes. The best mask prunes no square above that sum. So larger squares
    can be lowered to the sum: the best mask stays the same, and the others get more digits.
    """
    kept, todo, limit = kept.clone(), torch.arange(len(tiles), device=tiles.device), pruned
    while len(todo):
        part = tiles[todo]
        lowered = part.minimum(limit[:, None, None]) / limit[:, None, None]
        found = solver(lowered.view(-1, pattern.m), pattern).view(part.shape)
        pruned = part.masked_fill(found, 0).sum((1, 2))
        better = pruned < limit
        kept[todo[better]] = found[better]
        again = better & (0 < pruned) & (pruned < ROUGH * limit)
        todo, limit = todo[again], pruned[again]
    return kept


def nearest_blocks(weight: Tensor, pattern: BlockPattern) -> Tensor:
    """Return the block mask that keeps the blocks with the largest sums of squares.

    Of blocks with equal sums the first are kept, in row-major order.

    Args:
        weight: A weight whose shape fits the pattern.
        pattern: The block pattern.

    Raises:
        ValueError: The weight holds a NaN.
    """
    refuse_nan(weight)
    sums = block_squares(weight, pattern)
    mask = keep_highest(sums.flatten(), pattern.kept_blocks(weight.shape)).view(sums.shape)
    return fill_blocks(mask, weight, pattern)


def block_squares(weight: Tensor, pattern: BlockPattern) -> Tensor:
    """Return the sum of squares of each block, (..., R, C), in fp64 and up to a factor.

    Args:
        weight: A weight whose shape fits the pattern.
        pattern: The block pattern.
    """
    tiles = pattern.tiles(weight)
    if weight.dtype == torch.float64:
        tiles = tiles / _power_of_two(tiles.masked_fill(tiles.isinf(), 0).abs().amax())
    return tiles.double().square().sum(-3).sum(-1)  # in fp64, squares of narrower floats neither overflow nor vanish


# By kind of pattern; None if the mask of |w| is also the mask of the nearest weight.
NEAREST: dict[str, Callable[[Tensor, Any], Tensor] | None] = {
    "nm": None,
    "unstructured": None,
    "dense": None,
    "transposable": nearest_tiles,
    "block": nearest_blocks,
}
