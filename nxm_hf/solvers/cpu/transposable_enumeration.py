"""The best mask of sixteen 4 x 4 tiles at a time, by trying every mask, as LLVM code.

`nxm_hf.solvers.transposable_enumeration` does the same in torch. Both add sums in the same order, and keep the first of
equal masks. So both give the same bits.
"""

from functools import reduce
from itertools import combinations

import torch
from llvmlite.ir import Constant, IRBuilder, Value

from nxm_hf.solvers.base import INFINITY_BITS
from nxm_hf.solvers.cpu.llvm_vectors import (
    FLOATS,
    I8,
    I64,
    LANES,
    any_set,
    broadcast,
    load,
    magnitude,
    maximum,
    pointer,
    splat,
    transposed,
)
from nxm_hf.solvers.transposable_enumeration import every_tile

INFINITE = INFINITY_BITS[torch.float32]
LARGEST = INFINITE - 1 - (4 << 23)  # the bits of the largest float over 16, of which sums of a tile cannot overflow
# The bits of 2**-40 and 2**60. The squares of a tile whose largest magnitude is between them neither overflow nor
# lose digits that count.
SQUARES = ((127 - 40) << 23, (127 + 60) << 23)
ROUGH = 1 / 64  # of the largest square, as in `nxm_hf.solvers.nearest`
SPREAD, EACH_BYTE = 0x00204081, 0x01010101  # a product and an "and" turn four bits into four bytes


def keep_best(b: IRBuilder, n: int, m: int, scores: Value, mask: Value, width: Value, readable: Value) -> Value:
    """Write the best masks of sixteen tiles side by side. Return 0.

    Return 1 if a sum may overflow or is infinite, and 3 if there is a NaN; the masks are not valid then.

    Args:
        b: The builder that the code is appended to.
        n: Kept entries of a row and of a column.
        m: Side of a tile; it must be 4.
        scores: The address of the first score.
        mask: The address of its flag.
        width: Width of scores and mask.
        readable: The bits of a score that are read; all but the sign for magnitudes.
    """
    rows = _load_tiles(b, m, scores, width)
    seen = broadcast(b, readable)
    best = _best_masks(b, n, [[b.bitcast(b.and_(bits, seen), FLOATS) for bits in row] for row in rows])
    _store_masks(b, m, best, mask, width)
    peak = _peak(b, rows)
    return _problem(b, b.icmp_signed(">", peak, splat(LARGEST)), peak)


def keep_nearest(b: IRBuilder, n: int, m: int, weight: Value, mask: Value, width: Value, _: Value) -> Value:
    """Write the masks that keep the largest sums of squares of sixteen tiles side by side. Return 0.

    Return 1 if squares are too large or too small for their type, or lose too many digits beside the largest. Return 3
    if there is a NaN. The masks are not valid then.

    Args:
        b: The builder that the code is appended to.
        n: Kept entries of a row and of a column.
        m: Side of a tile; it must be 4.
        weight: The address of the first entry.
        mask: The address of its flag.
        width: Width of weight and mask.
        _: Unused.
    """
    rows = _load_tiles(b, m, weight, width)
    floats = [[b.bitcast(bits, FLOATS) for bits in row] for row in rows]
    squares = [[b.fmul(x, x) for x in row] for row in floats]
    best = _best_masks(b, n, squares)
    _store_masks(b, m, best, mask, width)
    peak, none = _peak(b, rows), b.bitcast(splat(0), FLOATS)
    left = [
        b.select(b.icmp_signed("==", b.and_(best, splat(1 << i)), splat(0)), square, none)
        for i, square in enumerate(square for row in squares for square in row)
    ]
    pruned, largest = reduce(b.fadd, left), b.bitcast(peak, FLOATS)
    limit = b.fmul(b.fmul(largest, largest), Constant(FLOATS, [ROUGH] * LANES))
    rough = b.and_(b.fcmp_ordered("<", none, pruned), b.fcmp_ordered("<", pruned, limit))
    small = b.and_(b.icmp_signed(">", peak, splat(0)), b.icmp_signed("<", peak, splat(SQUARES[0])))
    beyond = b.or_(small, b.icmp_signed(">", peak, splat(SQUARES[1])))
    return _problem(b, b.or_(rough, beyond), peak)


def _load_tiles(b: IRBuilder, m: int, address: Value, width: Value) -> list[list[Value]]:
    """Return entry j of row i of sixteen tiles at [i][j], as bits."""
    starts = [b.mul(width, Constant(I64, i)) for i in range(m)]
    return [
        transposed(b, [load(b, address, b.add(start, Constant(I64, LANES * j))) for j in range(m)]) for start in starts
    ]


def _store_masks(b: IRBuilder, m: int, masks: Value, address: Value, width: Value) -> None:
    for i in range(m):
        four = b.and_(b.lshr(masks, splat(m * i)), splat(2**m - 1))
        flags = b.and_(b.mul(four, splat(SPREAD)), splat(EACH_BYTE))
        row = pointer(b, address, b.mul(width, Constant(I64, i)), I8)
        b.store(flags, b.bitcast(row, flags.type.as_pointer()), align=1)


def _peak(b: IRBuilder, rows: list[list[Value]]) -> Value:
    """Return the largest magnitude of each tile, as bits."""
    return reduce(lambda x, y: maximum(b, x, y), (magnitude(b, bits) for row in rows for bits in row))


def _problem(b: IRBuilder, wide: Value, peak: Value) -> Value:
    """Return 1 where a tile is wide, and 3 where one holds a NaN."""
    flags = (any_set(b, wide), any_set(b, b.icmp_signed(">", peak, splat(INFINITE))))
    some, nan = (b.zext(flag, I64) for flag in flags)
    return b.or_(b.or_(some, nan), b.shl(nan, Constant(I64, 1)))


def _best_masks(b: IRBuilder, n: int, rows: list[list[Value]]) -> Value:
    """Return the first best mask of each tile, as the bits of its entries in a row.

    Args:
        b: The builder that the code is appended to.
        n: Kept entries of a row and of a column.
        rows: Entry j of row i of all tiles at [i][j], as floats.
    """
    m = len(rows)
    lines = [{kept: reduce(b.fadd, [row[j] for j in kept]) for kept in combinations(range(m), n)} for row in rows]
    halves: list[dict[tuple[tuple[int, ...], ...], Value]] = [{}, {}]
    best: tuple[Value, Value] | None = None
    for tile in every_tile(n, m):
        for half, pair, first in zip(halves, (tile[:2], tile[2:]), (0, 2), strict=True):
            if pair not in half:
                half[pair] = b.fadd(lines[first][pair[0]], lines[first + 1][pair[1]])
        total = b.fadd(halves[0][tile[:2]], halves[1][tile[2:]])
        bits = splat(sum(1 << (m * i + j) for i, kept in enumerate(tile) for j in kept))
        if best is None:
            best = total, bits
        else:
            more = b.fcmp_ordered(">", total, best[0])
            best = b.select(more, total, best[0]), b.select(more, bits, best[1])
    assert best is not None
    return best[1]
