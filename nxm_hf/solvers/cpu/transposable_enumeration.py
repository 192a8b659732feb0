"""The best mask of sixteen 4 x 4 tiles at a time, by trying every mask, as LLVM code.

`nxm_hf.solvers.transposable_enumeration` does the same in torch: sums are added in the same order, and of equal masks
the first is kept, so both give the same bits.
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
    starts = [b.mul(width, Constant(I64, i)) for i in range(m)]
    rows = [
        transposed(b, [load(b, scores, b.add(start, Constant(I64, LANES * j))) for j in range(m)]) for start in starts
    ]
    peak = reduce(lambda x, y: maximum(b, x, y), (magnitude(b, bits) for row in rows for bits in row))
    best = _best_masks(
        b, n, [[b.bitcast(b.and_(bits, broadcast(b, readable)), FLOATS) for bits in row] for row in rows]
    )
    for i, start in enumerate(starts):
        four = b.and_(b.lshr(best, splat(m * i)), splat((1 << m) - 1))
        flags = b.and_(b.mul(four, splat(SPREAD)), splat(EACH_BYTE))
        b.store(flags, b.bitcast(pointer(b, mask, start, I8), flags.type.as_pointer()), align=1)
    large, nan = (any_set(b, b.icmp_signed(">", peak, splat(bits))) for bits in (LARGEST, INFINITE))
    return b.or_(b.zext(large, I64), b.shl(b.zext(nan, I64), Constant(I64, 1)))


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
