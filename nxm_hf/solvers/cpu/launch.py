"""Run kernels on tensors: a list of tensors is cut into jobs, which threads share."""

import struct
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from nxm_hf.solvers.base import INFINITY_BITS
from nxm_hf.solvers.cpu import IN_CACHE, LANES
from nxm_hf.solvers.cpu.block_sums import equal_kernel, sums_kernel
from nxm_hf.solvers.cpu.intrinsics import has_avx512
from nxm_hf.solvers.cpu.kernels import (
    Kernel,
    adamw_kept_kernel,
    adamw_kernel,
    compare_kernel,
    group_kernel,
    keep_kernel,
    restore_kernel,
)
from nxm_hf.solvers.cpu.nm_groups import OPERATIONS as BODIES
from nxm_hf.solvers.cpu.threads import pieces, run_jobs
from nxm_hf.solvers.cpu.tile_kernels import enumeration_kernel, tile_kernel
from nxm_hf.solvers.cpu.unstructured import ALL_BITS, MAGNITUDE, mark_highest
from nxm_hf.solvers.kept_entries import CHUNK, KeptEntries
from nxm_hf.solvers.self_test import Counts
from nxm_hf.solvers.transposable_duals import by_duals
from nxm_hf.solvers.transposable_enumeration import by_enumeration

OPERATIONS = frozenset(BODIES)
MANY = 1 / 4  # if more of the units are left to torch, it is faster on whole strips, whose vectors are long
SMALL_TILE = 4  # the side of tiles whose masks are all tried
UNUSED = 0  # given to a kernel of groups as an address, or as the bits of a factor, that its operation does not read
# Strips of tiles or parts of them, (strips, m, width), and flags of the parts that they are -> their masks.
TileSolver = Callable[[Tensor, Tensor | None], Tensor]


def run(operation: str, n: int, m: int, *tensors: Tensor, factor: float = 0.0) -> int:
    """Apply an operation of `nm_groups` to tensors.

    Args:
        operation: The name of the operation.
        n: Kept entries of a group.
        m: Entries of a group.
        *tensors: Up to three contiguous tensors of one size. The dtype of the first chooses the kernel.
        factor: The factor of the operation; it is rounded to fp32.

    Returns:
        The count of the operation, or -1 if there was a NaN.
    """
    (bits,) = struct.unpack("i", struct.pack("f", factor))
    return _over_groups(operation, n, m, [tensors], bits)[0]


def counter(n: int, m: int, dtype: torch.dtype) -> Callable[[int, int], int]:
    """Return the kernel of `count_entries` for weights that come part by part.

    Args:
        n: Kept entries of a group.
        m: Entries of a group.
        dtype: The type of the entries.

    Returns:
        A function of the address of a part and of how often it has sixteen groups. It returns the count of the
        operation, or -1 if there was a NaN.
    """
    kernel = group_kernel("count_entries", n, m, 8 * dtype.itemsize, INFINITY_BITS[dtype])
    return lambda address, sixteens: kernel(0, sixteens, address, UNUSED, UNUSED, UNUSED)


def block_sums(rows: int, columns: int) -> Callable[[np.ndarray, np.ndarray], int]:
    """Return the kernel for sums of columns and rows, a function of a block of uint64 and of its sums.

    Args:
        rows: Rows of a block, a multiple of five.
        columns: Columns of a block.
    """
    return sums_kernel(rows, columns)


def magnitude_solver(n: int, m: int, dtype: torch.dtype) -> Callable[[int, int, int], int]:
    """Return the kernel of `magnitude_mask` for weights that come part by part.

    Args:
        n: Kept entries of a group.
        m: Entries of a group.
        dtype: The type of the entries.

    Returns:
        A function of the address of a part, of how often it has sixteen groups, and of the address of a mask to write.
        It returns -1 if there was a NaN.
    """
    kernel = group_kernel("magnitude_mask", n, m, 8 * dtype.itemsize, INFINITY_BITS[dtype])
    return lambda address, sixteens, out: kernel(0, sixteens, address, out, UNUSED, UNUSED)


def equal_words() -> Callable[[np.ndarray, np.ndarray], int]:
    """Return the kernel that compares two arrays of uint64 of one size: 1 if they are equal, else 0."""
    return equal_kernel()


def fill_masks(n: int, m: int, scores: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    """Write the N:M masks of a list of scores.

    Args:
        n: Kept entries of a group.
        m: Entries of a group.
        scores: Scores of any strides.
        masks: Contiguous bool tensors of their shapes.
    """
    _over_groups("mask", n, m, [(each.contiguous(), mask) for each, mask in zip(scores, masks, strict=True)])


def _over_groups(
    operation: str, n: int, m: int, inputs: Sequence[tuple[Tensor, ...]], factor_bits: int = UNUSED
) -> list[int]:
    """Apply an operation to each tuple of tensors. Return the count of each."""
    jobs, owners, step = [], [], LANES * m
    for i, tensors in enumerate(inputs):
        dtype = tensors[0].dtype
        kernel = group_kernel(operation, n, m, 8 * dtype.itemsize, INFINITY_BITS[dtype])
        x, y, z = [*(tensor.data_ptr() for tensor in tensors), UNUSED, UNUSED][:3]
        for first, last in pieces(tensors[0].numel() // step, step):
            jobs.append(partial(kernel, first, last, x, y, z, factor_bits))
            owners.append(i)
    counts = run_jobs(jobs, sum(tensors[0].numel() for tensors in inputs))
    totals = [0] * len(inputs)
    for i, count in zip(owners, counts, strict=True):
        totals[i] = -1 if min(count, totals[i]) < 0 else totals[i] + count
    return totals


def adamw(rounding: int, weights: Sequence[tuple[Tensor, ...]], pulls: bool = False) -> None:
    """Take a step of AdamW with each of a list of weights.

    Args:
        rounding: The index in `adamw_entries.ROUNDINGS` of torch's rounding.
        weights: Each weight with its gradient, its mask, both moments, and the numbers of its step. All but the numbers
            are contiguous and of one size, a multiple of sixteen. All but the mask are fp32.
        pulls: Whether the weights are dense, and their pruned entries are pulled to zero; if not, the step is masked.
    """
    kernel, jobs = adamw_kernel(rounding, int(pulls)), []
    for tensors in weights:
        addresses = [tensor.data_ptr() for tensor in tensors]
        for first, last in pieces(tensors[0].numel() // LANES, LANES):
            jobs.append(partial(kernel, first, last, *addresses))
    run_jobs(jobs, sum(tensors[0].numel() for tensors in weights))


def can_gather() -> bool:
    """Return whether kernels that gather entries can be compiled for this CPU."""
    return has_avx512()


def adamw_of_kept(rounding: int, weights: Sequence[tuple[KeptEntries, tuple[Tensor, ...]]]) -> None:
    """Take a masked step of AdamW with each of a list of weights whose moments are those of kept entries.

    Args:
        rounding: The index in `adamw_entries.ROUNDINGS` of torch's rounding.
        weights: The kept entries of each weight; and the weight, its gradient, both packed moments, and the numbers of
            its step. All are fp32 and contiguous.
    """
    kernel, jobs = adamw_kept_kernel(rounding), []
    for kept, (weight, gradient, *others) in weights:
        tensors = (weight, gradient, kept.bits, *others)
        run = partial(_over_chunks, kernel, kept, weight.numel(), [tensor.data_ptr() for tensor in tensors])
        jobs += [partial(run, first, last) for first, last in pieces(kept.chunks, CHUNK)]
    run_jobs(jobs, sum(tensors[0].numel() for _, tensors in weights))


def _over_chunks(kernel: Kernel, kept: KeptEntries, numel: int, addresses: list[int], first: int, last: int) -> int:
    return kernel(first, last, kept.offsets.numpy(), numel, *addresses)


def compare_entries(old: Tensor, new: Tensor, flags: np.ndarray, room: np.ndarray) -> int:
    """Flag the entries that differ, and gather their old bits. Return how many they are.

    Args:
        old: Integers of 16 or 32 bits, side by side; a multiple of sixteen.
        new: As many.
        flags: Where to write a bit for each entry, the first in the lowest bit of a byte.
        room: Where to write the old bits: room for sixteen more than there are entries.
    """
    addresses = old.data_ptr(), new.data_ptr(), flags.ctypes.data, room.ctypes.data
    return compare_kernel(8 * old.itemsize)(len(old) // LANES, *addresses)


def keep_entries(
    source: Tensor,
    mask: Tensor | Callable[[int, int], int],
    out: Tensor,
    flags: np.ndarray,
    room: np.ndarray,
    look: Callable[[int, int], None] | None = None,
) -> int:
    """Write kept entries, and +0.0 elsewhere and for -0.0. Do as `compare_entries` with what that overwrites.

    Args:
        source: Integers of 16 or 32 bits, side by side; a multiple of sixteen.
        mask: True where an entry is kept. Or a function of the address of a part of the source and of how many entries
            it has, which returns the address of the mask of this part.
        out: Where to write; it may be the source.
        flags: As in `compare_entries`.
        room: As in `compare_entries`.
        look: Called with the bytes of `out` that were written, from which to which, while they are in the cache.
    """
    kernel, width, changed = keep_kernel(8 * out.itemsize), out.itemsize, 0
    x, z = source.data_ptr(), out.data_ptr()
    flag, held = flags.ctypes.data, room.ctypes.data
    for at in range(0, len(out), IN_CACHE):
        count, begin = min(IN_CACHE, len(out) - at), at * width
        kept = mask(x + begin, count) if callable(mask) else mask.data_ptr() + at
        changed += kernel(count // LANES, x + begin, kept, z + begin, flag + at // 8, held + width * changed)
        if look is not None:
            look(begin, begin + count * width)
    return changed


def restore_entries(entries: Tensor, flags: np.ndarray, room: np.ndarray, same: bool) -> None:
    """Write old bits over the flagged entries.

    Args:
        entries: The entries; edited in place.
        flags: What `compare_entries` wrote.
        room: The old bits, and sixteen entries more.
        same: All flagged entries get the first of the old bits, which stands there sixteen times.
    """
    addresses = entries.data_ptr(), flags.ctypes.data, room.ctypes.data
    restore_kernel(8 * entries.itemsize)(len(entries) // LANES, *addresses, 0 if same else entries.itemsize)


def over_tiles(n: int, m: int, scores: Sequence[Tensor], masks: Sequence[Tensor], magnitudes: bool = False) -> int:
    """Write the best transposable masks of a list of scores.

    Args:
        n: Kept entries of a row and of a column.
        m: Side of a tile.
        scores: Contiguous fp32 scores.
        masks: Contiguous bool tensors of their shapes.
        magnitudes: Whether the scores are the magnitudes of these numbers.

    Returns:
        0, or -1 where there is a NaN.
    """

    def solve(tiles: Tensor, _: Tensor | None) -> Tensor:
        solver = by_enumeration if m == SMALL_TILE else by_duals
        return solver((tiles.abs() if magnitudes else tiles).flatten(0, 1), Counts(n, m))

    small = m == SMALL_TILE
    kernel = enumeration_kernel(n, m) if small else tile_kernel(n, m)
    readable = MAGNITUDE if magnitudes else ALL_BITS
    return _over_units(kernel, m, LANES if small else 1, scores, masks, readable, solve)


def nearest_tiles(n: int, m: int, weights: Sequence[Tensor], masks: Sequence[Tensor], solve: TileSolver) -> int:
    """Write the transposable masks that keep the largest sums of squares.

    Args:
        n: Kept entries of a row and of a column.
        m: Side of a tile.
        weights: Contiguous fp32 weights, or parts of one.
        masks: Contiguous bool tensors of their shapes.
        solve: Return the masks of strips of tiles whose squares need more care, or of parts of these strips: then it
            also gets flags of the parts, for each strip. It is called once for all parts of a weight, or all strips.

    Returns:
        0, or -1 where there is a NaN.
    """
    small = m == SMALL_TILE
    kernel = enumeration_kernel(n, m, squares=True) if small else tile_kernel(n, m, squares=True)
    return _over_units(kernel, m, LANES if small else 1, weights, masks, ALL_BITS, solve, MANY)


def project_tiles(n: int, m: int, weights: Sequence[Tensor], outs: Sequence[Tensor], solve: TileSolver) -> int:
    """Write what the masks of `nearest_tiles` keep, and +0.0 elsewhere and for -0.0.

    Args:
        n: Kept entries of a row and of a column.
        m: Side of a tile, more than 4.
        weights: Contiguous fp32 weights, or parts of one.
        outs: Contiguous fp32 tensors of their shapes; they may be the weights themselves.
        solve: As in `nearest_tiles`.

    Returns:
        0, or -1 where there is a NaN.
    """

    def project(tiles: Tensor, places: Tensor | None) -> Tensor:
        return tiles.masked_fill(~solve(tiles, places).view(tiles.shape), 0.0).add_(0.0)  # -0.0 + 0.0 is +0.0

    kernel = tile_kernel(n, m, squares=True, projects=True)
    return _over_units(kernel, m, 1, weights, outs, ALL_BITS, project, MANY)


def _over_units(
    kernel: Kernel,
    m: int,
    unit: int,
    scores: Sequence[Tensor],
    masks: Sequence[Tensor],
    readable: int,
    solve: TileSolver,
    many: float = 1.0,
) -> int:
    """Run a kernel on units of adjacent tiles. Solve the flagged units and the rest of the width by `solve`.

    Whole strips are solved where more than the share `many` of the units is flagged.
    """
    jobs, flags = [], []
    for each, mask in zip(scores, masks, strict=True):
        width = each.shape[-1]
        wide = torch.zeros(each.numel() // width // m * (width // (m * unit)), dtype=torch.int8)
        flags.append(wide)
        for first, last in pieces(len(wide), m**2 * unit):
            jobs.append(partial(kernel, first, last, each.data_ptr(), mask.data_ptr(), width, readable, wide.numpy()))
    broken = min(run_jobs(jobs, sum(each.numel() for each in scores)), default=0)
    for each, mask, wide in zip(scores, masks, flags, strict=True):
        strips, kept = (x.view(-1, m, x.shape[-1]) for x in (each, mask))
        even = each.shape[-1] // (m * unit) * m * unit
        rest = strips[..., even:]
        if broken or rest.isnan().any():
            return -1
        if rest.numel():
            kept[..., even:] = solve(rest, None).view(rest.shape)
        if wide.any():
            _solve_wide_units(strips[..., :even], kept[..., :even], wide.bool(), m * unit, solve, many)
    return 0


def _solve_wide_units(strips: Tensor, kept: Tensor, wide: Tensor, across: int, solve: TileSolver, many: float) -> None:
    """Solve the flagged units of strips again, with a solver for any device."""
    units, masks = (x.unflatten(-1, (-1, across)).transpose(1, 2) for x in (strips, kept))
    places = wide.view(units.shape[:2])
    if places.sum() > many * places.numel():
        kept.copy_(solve(strips, None).view(strips.shape))  # units that were right, or projected, stay as they are
    else:
        masks[places] = solve(units[places], places).view(-1, *units.shape[2:])


def highest_of_row(scores: Tensor, count: int, mask: Tensor, magnitudes: bool = False) -> int:
    """Write the mask of the highest scores of a row.

    Args:
        scores: A contiguous row of fp32 scores.
        count: How many to keep.
        mask: A contiguous bool row of the same length.
        magnitudes: Whether the scores are the magnitudes of these numbers.

    Returns:
        0, or -1 where a magnitude is NaN.
    """
    return mark_highest(scores, count, mask, MAGNITUDE if magnitudes else ALL_BITS)
