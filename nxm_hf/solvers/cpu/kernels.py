"""The loops around the LLVM code, compiled once per pattern."""

from collections.abc import Callable
from functools import cache

import numpy as np
from numba import types

from nxm_hf.solvers.cpu.intrinsics import (
    NUMBER,
    adamw_sixteen,
    adamw_sixteen_kept,
    compare,
    compiled,
    copy_flags,
    copy_scores,
    gather_kept,
    gather_row,
    helper,
    keep,
    keep_all,
    keep_best,
    keep_nearest,
    miscounted,
    price_cols,
    price_rows,
    restore,
    round_all,
    sixteen_groups,
    spread_kept,
    spread_row,
)
from nxm_hf.solvers.cpu.llvm_vectors import LANES
from nxm_hf.solvers.cpu.nm_groups import OPERATIONS
from nxm_hf.solvers.cpu.transposable_paths import settle_tile, workspace
from nxm_hf.solvers.cpu.transposable_tiles import INFINITE
from nxm_hf.solvers.kept_entries import CHUNK

Kernel = Callable[..., int]
LARGEST = 1 << 29  # largest integer score, times m: a path of 2m steps stays below FAR
# Least mean of a tile's integer scores. Rounding then costs some units of an optimum of at least 2**24. If one score is
# so large that the mean is below this, a solver with wider integers solves the tile.
VANISHING = 1 << 10


def pricing_rounds(m: int) -> int:
    """Return the number of pricing rounds. More rounds leave fewer tiles to the path search.

    Args:
        m: Side of a tile.
    """
    return {2: 4, 4: 5, 8: 8, 16: 12}.get(m, 14)


@cache
def group_kernel(operation: str, n: int, m: int, bits: int, infinity: int) -> Kernel:
    """Return `run(first, last, x, y, z, factor)`, which applies an operation to a range of sixteens of groups.

    Args:
        operation: A name of `nm_groups.OPERATIONS`.
        n: Kept entries of a group.
        m: Entries of a group.
        bits: Width of a float.
        infinity: The bits of infinity in that format.

    Returns:
        The kernel; `x`, `y` and `z` are addresses of tensors, and `factor` holds the bits of an fp32 number. It returns
        the sum of all counts, or -1 if there was a NaN. It does not stop at a NaN.
    """
    number = list(OPERATIONS).index(operation)
    step = LANES * m

    def run(first: int, last: int, x: int, y: int, z: int, factor: int) -> int:
        total, broken = 0, False
        for at in range(first * step, last * step, step):
            count = sixteen_groups(number, n, m, bits, infinity, at, x, y, z, factor)
            broken |= count < 0
            total += count
        return -1 if broken else total

    return compiled(run, NUMBER(*[NUMBER] * 6))


@cache
def adamw_kernel(rounding: int, pulls: int) -> Kernel:
    """Return `run(first, last, weight, gradient, mask, first_moment, second_moment, numbers)`: a step of AdamW.

    Args:
        rounding: The index in `adamw_entries.ROUNDINGS` of torch's rounding.
        pulls: 0 for a masked step, 1 for a step that pulls pruned entries of a dense weight to zero.

    Returns:
        The kernel; it works on a range of sixteens of entries. All its other arguments are addresses.
    """

    def run(first: int, last: int, weight: int, gradient: int, mask: int, m: int, v: int, numbers: int) -> int:
        for at in range(first * LANES, last * LANES, LANES):
            adamw_sixteen(rounding, pulls, at, weight, gradient, mask, m, v, numbers)
        return 0

    return compiled(run, NUMBER(*[NUMBER] * 8))


@cache
def adamw_kept_kernel(rounding: int) -> Kernel:
    """Return a masked step of AdamW whose moments are those of kept entries.

    It is `run(first, last, offsets, numel, weight, gradient, bits, first_moment, second_moment, numbers)`.

    Args:
        rounding: The index in `adamw_entries.ROUNDINGS` of torch's rounding.

    Returns:
        The kernel; it works on a range of chunks. `offsets` and `bits` are those of `KeptEntries`, and `numel` is the
        size of the weight, a multiple of sixteen. From `weight` on, all are addresses. It needs AVX-512.
    """

    def run(
        first: int,
        last: int,
        offsets: np.ndarray,
        numel: int,
        weight: int,
        gradient: int,
        bits: int,
        m: int,
        v: int,
        numbers: int,
    ) -> int:
        weights, gradients = np.zeros(CHUNK + LANES, np.float32), np.zeros(CHUNK + LANES, np.float32)
        w, g = weights.ctypes.data, gradients.ctypes.data
        for chunk in range(first, last):
            end = min((chunk + 1) * CHUNK, numel)
            count = 0
            for at in range(chunk * CHUNK, end, LANES):
                count += gather_kept(at, weight, gradient, bits, w + 4 * count, g + 4 * count)
            shift = 4 * offsets[chunk]
            for at in range(0, count, LANES):
                adamw_sixteen_kept(rounding, at, w, g, m + shift, v + shift, numbers)
            count = 0
            for at in range(chunk * CHUNK, end, LANES):
                count += spread_kept(at, weight, bits, w + 4 * count)
        return 0

    return compiled(run, NUMBER(*[NUMBER] * 2, types.int64[::1], *[NUMBER] * 7))


@cache
def compare_kernel(bits: int) -> Kernel:
    """Return `run(sixteens, old, new, flags, room)`: flag the entries that differ, and gather their old bits.

    Args:
        bits: Width of an entry, 16 or 32.

    Returns:
        The kernel. All its arguments but the first are addresses. There must be room for sixteen entries more than
        differ. It returns how many differ. It needs AVX-512.
    """
    width = bits // 8

    def run(sixteens: int, old: int, new: int, flags: int, room: int) -> int:
        count = 0
        for at in range(0, sixteens * LANES, LANES):
            count += compare(bits, at, old, new, flags, room + width * count)
        return count

    return compiled(run, NUMBER(*[NUMBER] * 5))


@cache
def keep_kernel(bits: int) -> Kernel:
    """Return `run(sixteens, source, mask, out, flags, room)`: write kept entries, and hold what that overwrites.

    Args:
        bits: Width of an entry, 16 or 32.

    Returns:
        The kernel. It differs from `compare_kernel` in that it writes the new entries itself.
    """
    width = bits // 8

    def run(sixteens: int, source: int, mask: int, out: int, flags: int, room: int) -> int:
        count = 0
        for at in range(0, sixteens * LANES, LANES):
            count += keep(bits, at, source, mask, out, flags, room + width * count)
        return count

    return compiled(run, NUMBER(*[NUMBER] * 6))


@cache
def restore_kernel(bits: int) -> Kernel:
    """Return `run(sixteens, entries, flags, room, step)`: write old bits over the flagged entries.

    Args:
        bits: Width of an entry, 16 or 32.

    Returns:
        The kernel. From `entries` to `room` its arguments are addresses. `step` is the width of an entry in bytes, or
        0 if all flagged entries had the bits that stand sixteen times at `room`. It needs AVX-512.
    """

    def run(sixteens: int, entries: int, flags: int, room: int, step: int) -> int:
        for at in range(0, sixteens * LANES, LANES):
            room += step * restore(bits, at, entries, flags, room)
        return 0

    return compiled(run, NUMBER(*[NUMBER] * 5))


@cache
def tile_kernel(n: int, m: int) -> Kernel:
    """Return `run(first, last, scores, mask, width, readable, wide)`, which writes the best masks of a range of tiles.

    Of each score it reads the bits `readable`. Tiles whose scores need wider integers are flagged in `wide`, and their
    masks are not valid. It returns -1 if there was a NaN, else 0.

    Args:
        n: Kept entries of a row and of a column.
        m: Side of a tile.
    """
    rounds, largest = pricing_rounds(m), LARGEST // m

    def run(first: int, last: int, scores: int, mask: int, width: int, readable: int, wide: np.ndarray) -> int:
        broken = False
        entries = np.empty((m, m, LANES), np.int32)
        flags = np.empty((m, m, LANES), np.int8)
        rows, cols = np.empty((m, LANES), np.int32), np.empty((m, LANES), np.int32)
        side, kept = np.zeros((LANES, m), np.int32), np.empty((LANES, m), np.int8)
        peak, total, scale = np.empty(LANES, np.int32), np.empty(LANES, np.float32), np.empty(LANES, np.float64)
        begin = np.empty(LANES, np.int64)  # the offset of each tile, in entries
        work = workspace(m)
        for tile in range(first, last, LANES):
            count = min(LANES, last - tile)
            together = place_tiles(begin, tile, count, m, width)
            peak[:], total[:] = 0, 0
            for i in range(m):
                row = scores + 4 * (begin[0] + i * width)
                if not together:
                    row = side.ctypes.data
                    for lane in range(count):
                        copy_scores(n, m, scores + 4 * (begin[lane] + i * width), row + 4 * m * lane, 0, 0)
                spread_row(n, m, row, entries[i].ctypes.data, peak.ctypes.data, 0)
            set_scales(scale, peak.view(np.float32), largest)
            round_all(n, m, entries.ctypes.data, scale.ctypes.data, total.ctypes.data, readable)
            broken |= flag_wide(wide, tile, count, peak, total, m)
            cols[:] = 0
            for _ in range(rounds):
                price_rows(n, m, entries.ctypes.data, cols.ctypes.data, rows.ctypes.data, 0)
                price_cols(n, m, entries.ctypes.data, rows.ctypes.data, cols.ctypes.data, 0)
            keep_all(n, m, entries.ctypes.data, rows.ctypes.data, cols.ctypes.data, flags.ctypes.data)
            wrong = miscounted(n, m, flags.ctypes.data, 0, 0, 0)
            for lane in range(count):
                if (wrong >> lane) & 1:
                    settle_tile(entries, rows, cols, flags, lane, n, work)
            for i in range(m):
                row = mask + begin[0] + i * width
                gather_row(n, m, flags[i].ctypes.data, row if together else kept.ctypes.data, 0, 0)
                if not together:
                    for lane in range(count):
                        copy_flags(n, m, kept[lane].ctypes.data, mask + begin[lane] + i * width, 0, 0)
        return -1 if broken else 0

    return compiled(run, NUMBER(*[NUMBER] * 6, types.int8[::1]))


@cache
def enumeration_kernel(n: int, m: int, squares: bool = False) -> Kernel:
    """Return a function like that of `tile_kernel`, which tries every mask of a tile.

    Sixteen tiles side by side are one unit, and the rest of the width is left out. It flags units whose sums may
    overflow, or lose too many digits.

    Args:
        n: Kept entries of a row and of a column.
        m: Side of a tile; 4.
        squares: Whether the squares of the scores are added.
    """
    keep = keep_nearest if squares else keep_best

    def run(first: int, last: int, scores: int, mask: int, width: int, readable: int, wide: np.ndarray) -> int:
        across, found = width // (LANES * m), 0
        for i in range(first, last):
            at = i // across * m * width + i % across * LANES * m
            problem = keep(n, m, scores + 4 * at, mask + at, width, readable)
            if problem:
                wide[i] = 1
                found |= problem
        return -1 if found > 1 else 0

    return compiled(run, NUMBER(*[NUMBER] * 6, types.int8[::1]))


@helper
def place_tiles(begin: np.ndarray, tile: int, count: int, m: int, width: int) -> bool:
    """Write the offset of each of these tiles, in entries. Return whether they are sixteen adjacent tiles.

    Args:
        begin: Where to write.
        tile: The number of the first tile.
        count: How many tiles there are.
        m: Side of a tile.
        width: Width of the scores.
    """
    across = width // m
    for lane in range(count):
        begin[lane] = (tile + lane) // across * m * width + (tile + lane) % across * m
    return count == LANES and begin[LANES - 1] - begin[0] == (LANES - 1) * m


@helper
def set_scales(scale: np.ndarray, peaks: np.ndarray, largest: int) -> None:
    """Write the factors that bring each tile's largest magnitude to `largest`.

    Args:
        scale: Where to write.
        peaks: The largest magnitudes.
        largest: The largest integer score.
    """
    for lane in range(LANES):
        scale[lane] = largest / np.float64(peaks[lane]) if peaks[lane] > 0 else 0.0


@helper
def flag_wide(wide: np.ndarray, tile: int, count: int, peak: np.ndarray, total: np.ndarray, m: int) -> bool:
    """Flag the tiles whose scores are tiny beside the largest one. Beside an infinity all are.

    Return whether there is a NaN.

    Args:
        wide: The flags of all tiles.
        tile: The number of the first tile.
        count: How many tiles there are.
        peak: The bits of the largest magnitudes.
        total: The sums of all magnitudes, as integer scores.
        m: Side of a tile.
    """
    broken = False
    for lane in range(count):
        wide[tile + lane] = 0 < peak[lane] and total[lane] < VANISHING * m * m
        broken |= peak[lane] > INFINITE
    return broken
