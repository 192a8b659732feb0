"""The loops around the LLVM code of transposable tiles, compiled once per pattern."""

from functools import cache

import numpy as np
from numba import types

from nxm_hf.solvers.cpu.intrinsics import (
    NUMBER,
    add_pruned,
    compiled,
    copy_flags,
    copy_kept,
    copy_scores,
    gather_row,
    helper,
    keep_all,
    keep_best,
    keep_nearest,
    keep_row,
    miscounted,
    price_cols,
    price_rows,
    round_all,
    round_squares,
    spread_row,
)
from nxm_hf.solvers.cpu.kernels import Kernel
from nxm_hf.solvers.cpu.llvm_vectors import LANES
from nxm_hf.solvers.cpu.transposable_enumeration import ROUGH, SQUARES
from nxm_hf.solvers.cpu.transposable_paths import Workspace, settle_tile, workspace
from nxm_hf.solvers.cpu.transposable_tiles import INFINITE

LARGEST = 1 << 29  # largest integer score, times m: a path of 2m steps stays below FAR
# Least mean of a tile's integer scores. Rounding then costs some units of an optimum of at least 2**24. If one score is
# so large that the mean is below this, a solver with wider integers solves the tile.
VANISHING = 1 << 10
ROUGHLY = 1.02 * ROUGH  # rounded squares add up to other sums than squares, but by less than two percent of `ROUGH`


def pricing_rounds(m: int) -> int:
    """Return the number of pricing rounds. More rounds leave fewer tiles to the path search.

    Args:
        m: Side of a tile.
    """
    return {2: 4, 4: 5, 8: 8, 16: 12}.get(m, 14)


@cache
def tile_kernel(n: int, m: int, squares: bool = False, projects: bool = False) -> Kernel:
    """Return `run(first, last, scores, out, width, readable, wide)`, which writes the best masks of a range of tiles.

    Of each score it reads the bits `readable`. Tiles that need more care are flagged in `wide`, and their masks are not
    valid; see `set_scales`, `flag_wide` and `flag_rough`. It returns -1 if there was a NaN, else 0.

    Args:
        n: Kept entries of a row and of a column.
        m: Side of a tile.
        squares: Whether the masks are those of the squares of the scores, of which all bits are read.
        projects: Whether to write kept scores, as `keep_row` does, instead of masks. Nothing is written of flagged
            tiles, so `out` may be the address of the scores.
    """
    rounds, largest = pricing_rounds(m), LARGEST // m

    def run(first: int, last: int, scores: int, out: int, width: int, readable: int, wide: np.ndarray) -> int:
        broken = False
        entries, flags, rows, cols, side, kept, peak, total, lost, scale, begin = room_of_tiles(m)
        work = workspace(m)
        for tile in range(first, last, LANES):
            count, together = place_tiles(begin, tile, last, m, width)
            peak[:], total[:], lost[:], cols[:] = 0, 0, 0, 0
            for i in range(m):
                row = scores + 4 * (begin[0] + i * width)
                if not together:
                    row = side.ctypes.data
                    for lane in range(count):
                        copy_scores(n, m, scores + 4 * (begin[lane] + i * width), row + 4 * m * lane, 0, 0)
                spread_row(n, m, row, entries[i].ctypes.data, peak.ctypes.data, 0)
            set_scales(scale, peak, largest, squares)
            if squares:
                round_squares(n, m, entries.ctypes.data, scale.ctypes.data, total.ctypes.data, lost.ctypes.data)
            else:
                round_all(n, m, entries.ctypes.data, scale.ctypes.data, total.ctypes.data, readable)
            broken |= flag_wide(wide, tile, count, peak, total, m)
            for _ in range(rounds):
                price_rows(n, m, entries.ctypes.data, cols.ctypes.data, rows.ctypes.data, 0)
                price_cols(n, m, entries.ctypes.data, rows.ctypes.data, cols.ctypes.data, 0)
            keep_all(n, m, entries.ctypes.data, rows.ctypes.data, cols.ctypes.data, flags.ctypes.data)
            wrong = miscounted(n, m, flags.ctypes.data, 0, 0, 0)
            settle_tiles(wrong, count, entries, rows, cols, flags, n, work)
            if squares:
                add_pruned(n, m, entries.ctypes.data, flags.ctypes.data, peak.ctypes.data, 0)
                flag_rough(wide, tile, count, peak, lost, largest)
            whole = together and not (projects and wide[tile : tile + count].any())
            for i in range(m):
                at = begin[0] + i * width
                gather_row(n, m, flags[i].ctypes.data, kept.ctypes.data if projects or not whole else out + at, 0, 0)
                if projects and whole:
                    keep_row(n, m, kept.ctypes.data, scores + 4 * at, out + 4 * at, 0)
                for lane in range(0 if whole else count):
                    at = begin[lane] + i * width
                    if not projects:
                        copy_flags(n, m, kept[lane].ctypes.data, out + at, 0, 0)
                    elif not wide[tile + lane]:
                        copy_kept(n, m, kept[lane].ctypes.data, scores + 4 * at, out + 4 * at, 0)
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
def place_tiles(begin: np.ndarray, tile: int, last: int, m: int, width: int) -> tuple[int, bool]:
    """Write the offset of each of up to sixteen tiles, in entries. Return their count, and whether all are adjacent.

    Args:
        begin: Where to write.
        tile: The number of the first tile.
        last: The number after that of the last tile there is.
        m: Side of a tile.
        width: Width of the scores.
    """
    count, across = min(LANES, last - tile), width // m
    for lane in range(count):
        begin[lane] = (tile + lane) // across * m * width + (tile + lane) % across * m
    return count, count == LANES and begin[LANES - 1] - begin[0] == (LANES - 1) * m


@helper
def set_scales(scale: np.ndarray, peak: np.ndarray, largest: int, squares: bool) -> None:
    """Write the factors that bring each tile's largest magnitude, or its square, to `largest`.

    The factor is 0 where a square is too large or too small for its type.

    Args:
        scale: Where to write.
        peak: The bits of the largest magnitudes.
        largest: The largest integer score.
        squares: Whether squares are scaled.
    """
    peaks = peak.view(np.float32)
    for lane in range(LANES):
        top = peaks[lane] * peaks[lane] if squares else peaks[lane]
        beyond = squares and not SQUARES[0] <= peak[lane] <= SQUARES[1]
        scale[lane] = largest / np.float64(top) if top > 0 and not beyond else 0.0


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


@helper
def flag_rough(wide: np.ndarray, tile: int, count: int, pruned: np.ndarray, lost: np.ndarray, largest: int) -> None:
    """Flag the tiles whose pruned squares together are little beside the largest square, but more than nothing.

    Args:
        wide: The flags of all tiles.
        tile: The number of the first tile.
        count: How many tiles there are.
        pruned: The sums of the integers that are pruned.
        lost: Not 0 where an integer is 0 for another number than 0.
        largest: The largest integer of each tile.
    """
    for lane in range(count):
        some = pruned[lane] > 0 or lost[lane] != 0
        wide[tile + lane] |= some and pruned[lane] < ROUGHLY * largest


@helper
def settle_tiles(
    wrong: int,
    count: int,
    entries: np.ndarray,
    rows: np.ndarray,
    cols: np.ndarray,
    flags: np.ndarray,
    n: int,
    work: Workspace,
) -> None:
    """Do `settle_tile` for each tile that prices have not settled.

    Args:
        wrong: These tiles, as the bits of a number.
        count: How many tiles there are.
        entries: See `settle_tile`.
        rows: The prices of rows.
        cols: The prices of columns.
        flags: See `settle_tile`.
        n: Kept entries of a row and of a column.
        work: See `settle_tile`.
    """
    for lane in range(count):
        if (wrong >> lane) & 1:
            settle_tile(entries, rows, cols, flags, lane, n, work)


@helper
def room_of_tiles(m: int) -> tuple[np.ndarray, ...]:
    """Return the arrays of a kernel for sixteen tiles.

    These are the integer scores, flags, and prices of rows and of columns. Next are a row of each tile side by side,
    its flags, and five numbers of each tile: the largest magnitude, the sum, what is lost, the factor, the offset.

    Args:
        m: Side of a tile.
    """
    entries, flags = np.empty((m, m, LANES), np.int32), np.empty((m, m, LANES), np.int8)
    rows, cols = np.empty((m, LANES), np.int32), np.empty((m, LANES), np.int32)
    side, kept = np.zeros((LANES, m), np.int32), np.empty((LANES, m), np.int8)
    peak, total, lost = np.empty(LANES, np.int32), np.empty(LANES, np.float32), np.empty(LANES, np.int32)
    scale, begin = np.empty(LANES, np.float64), np.empty(LANES, np.int64)
    return entries, flags, rows, cols, side, kept, peak, total, lost, scale, begin
