"""Steps on the rows and columns of sixteen m x m tiles at a time, as LLVM code.

Entry (i, j) of all sixteen tiles is one vector. Steps are called with n, m and four addresses. Some use only the first
of these.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce

import torch
from llvmlite import ir
from llvmlite.ir import Constant, IntType, IRBuilder, Value, VectorType
from numba.core import cgutils

from nxm_hf.solvers.base import INFINITY_BITS
from nxm_hf.solvers.cpu.llvm_vectors import (
    DOUBLES,
    FLOATS,
    I8,
    I32,
    I64,
    LANES,
    ZERO,
    broadcast,
    load,
    magnitude,
    maximum,
    minimum,
    ranked,
    restored,
    splat,
    store,
    transposed,
    vector_of,
)
from nxm_hf.solvers.cpu.transposable_enumeration import SQUARES

INFINITE = INFINITY_BITS[torch.float32]
MOST_PRUNED = 2**31 - 1  # of the integers of a tile


def copy_scores(b: IRBuilder, n: int, m: int, source: Value, target: Value, _: Value, __: Value) -> Value:
    """Copy m scores.

    Args:
        b: The builder that the code is appended to.
        n: Kept entries of a row and of a column.
        m: Side of a tile.
        source: The address to copy from.
        target: The address to copy to.
        _: Unused.
        __: Unused.
    """
    return _copy(b, VectorType(I32, m), source, target)


def copy_flags(b: IRBuilder, n: int, m: int, source: Value, target: Value, _: Value, __: Value) -> Value:
    """Copy m flags.

    Args:
        b: The builder that the code is appended to.
        n: Kept entries of a row and of a column.
        m: Side of a tile.
        source: The address to copy from.
        target: The address to copy to.
        _: Unused.
        __: Unused.
    """
    return _copy(b, VectorType(I8, m), source, target)


def _copy(b: IRBuilder, vector: ir.Type, source: Value, target: Value) -> Value:
    b.store(b.load(b.inttoptr(source, vector.as_pointer()), align=1), b.inttoptr(target, vector.as_pointer()), align=1)
    return ZERO


def spread_row(b: IRBuilder, n: int, m: int, row: Value, entries: Value, peak: Value, _: Value) -> Value:
    """Write a row of each tile, side by side, to entries. `peak` becomes the largest magnitude, as bits.

    Args:
        b: The builder that the code is appended to.
        n: Kept entries of a row and of a column.
        m: Side of a tile.
        row: The address of the row.
        entries: The address of the entries.
        peak: The address of the largest magnitudes.
        _: Unused.
    """
    vectors = transposed(b, [load(b, row, LANES * j) for j in range(m)])
    for j, bits in enumerate(vectors):
        store(b, bits, entries, LANES * j)
    magnitudes = [magnitude(b, bits) for bits in vectors]
    store(b, reduce(lambda x, y: maximum(b, x, y), magnitudes, load(b, peak, 0)), peak, 0)
    return ZERO


def round_all(b: IRBuilder, n: int, m: int, entries: Value, scale: Value, total: Value, readable: Value) -> Value:
    """Turn floats into integers in place: scale each tile by its double in `scale`, and round. Infinities become 0.

    The magnitudes are added to the floats of `total`.

    Args:
        b: The builder that the code is appended to.
        n: Kept entries of a row and of a column.
        m: Side of a tile.
        entries: The address of the entries.
        scale: The address of the factors.
        total: The address of the sums.
        readable: The bits of a float that are read; all but the sign for magnitudes.
    """
    seen = broadcast(b, readable)

    def score(bits: Value) -> Value:
        bits = b.and_(bits, seen)
        return b.select(b.icmp_signed("<", magnitude(b, bits), splat(INFINITE)), bits, splat(0))

    _round(b, m, entries, scale, total, score)
    return ZERO


def round_squares(b: IRBuilder, n: int, m: int, entries: Value, scale: Value, total: Value, lost: Value) -> Value:
    """Turn floats into integers in place: square them, scale each tile by its double in `scale`, and round.

    Floats whose squares may overflow become 0. The sums of a tile are added to the floats of `total`. `lost` becomes
    another number than 0 in tiles where another number than 0 becomes 0.

    Args:
        b: The builder that the code is appended to.
        n: Kept entries of a row and of a column.
        m: Side of a tile.
        entries: The address of the entries.
        scale: The address of the factors.
        total: The address of the sums.
        lost: The address of the bits of what is lost.
    """

    def score(bits: Value) -> Value:
        small = b.icmp_signed("<=", magnitude(b, bits), splat(SQUARES[1]))
        number = b.bitcast(b.select(small, bits, splat(0)), FLOATS)
        return b.bitcast(b.fmul(number, number), bits.type)

    _round(b, m, entries, scale, total, score, lost)
    return ZERO


def _round(
    b: IRBuilder,
    m: int,
    entries: Value,
    scale: Value,
    total: Value,
    score: Callable[[Value], Value],
    lost: Value | None = None,
) -> None:
    """Round `score` of the bits of each entry, a finite float, times the factors of the tiles."""
    scales = b.load(b.inttoptr(scale, DOUBLES.as_pointer()), align=8)
    half, minus_half = (Constant(DOUBLES, [number] * LANES) for number in (0.5, -0.5))
    with _loop(b, m, LANES * m) as (line,):
        sizes, zeros = [], []
        for j in range(m):
            at = b.add(line, Constant(I64, LANES * j))
            given = load(b, entries, at)
            bits = score(given)
            scaled = b.fmul(b.fpext(b.bitcast(bits, FLOATS), DOUBLES), scales)
            rounding = half if lost is not None else b.select(b.icmp_signed("<", bits, splat(0)), minus_half, half)
            rounded = b.fptosi(b.fadd(scaled, rounding), vector_of(I32))
            store(b, rounded, entries, at)
            sizes.append(b.sitofp(maximum(b, rounded, b.neg(rounded)), FLOATS))
            zeros.append(b.select(b.icmp_signed("==", rounded, splat(0)), magnitude(b, given), splat(0)))
        before = b.bitcast(load(b, total, 0), FLOATS)
        store(b, b.bitcast(b.fadd(before, _sum_of_floats(b, sizes)), vector_of(I32)), total, 0)
        if lost is not None:
            store(b, reduce(b.or_, zeros, load(b, lost, 0)), lost, 0)


def _sum_of_floats(b: IRBuilder, vectors: list[Value]) -> Value:
    """Return a sum by pairs, which is exact for the small whole numbers that count here, as it is in any order."""
    while len(vectors) > 1:
        vectors = [b.fadd(x, y) for x, y in zip(vectors[::2], vectors[1::2], strict=True)]
    return vectors[0]


def price_rows(b: IRBuilder, n: int, m: int, entries: Value, cols: Value, rows: Value, _: Value) -> Value:
    """Write the price of each row, given those of the columns.

    Args:
        b: The builder that the code is appended to.
        n: Kept entries of a row and of a column.
        m: Side of a tile.
        entries: The address of the entries.
        cols: The address of the prices of columns.
        rows: The address of the prices of rows.
        _: Unused.
    """
    with _loop(b, m, LANES * m, LANES) as (line, at):
        store(b, _price(b, n, m, entries, line, LANES, cols), rows, at)
    return ZERO


def price_cols(b: IRBuilder, n: int, m: int, entries: Value, rows: Value, cols: Value, _: Value) -> Value:
    """Write the price of each column, given those of the rows.

    Args:
        b: The builder that the code is appended to.
        n: Kept entries of a row and of a column.
        m: Side of a tile.
        entries: The address of the entries.
        rows: The address of the prices of rows.
        cols: The address of the prices of columns.
        _: Unused.
    """
    with _loop(b, m) as (line,):
        store(b, _price(b, n, m, entries, line, LANES * m, rows), cols, line)
    return ZERO


def _price(b: IRBuilder, n: int, m: int, entries: Value, line: Value, stride: int, prices: Value) -> Value:
    """Subtract the crossing prices from a line's entries. Return the mean of the n-th and the (n+1)-th largest."""
    addresses = [b.add(line, Constant(I64, stride * j)) for j in range(m)]
    left = [b.sub(load(b, entries, at), load(b, prices, LANES * j)) for j, at in enumerate(addresses)]
    high, low = ranked(b, left, n - 1, n)
    return b.add(low, b.ashr(b.sub(high, low), splat(1)))


def keep_all(b: IRBuilder, n: int, m: int, entries: Value, rows: Value, cols: Value, flags: Value) -> Value:
    """Flag the entries that are larger than the sum of the prices of their row and column.

    Args:
        b: The builder that the code is appended to.
        n: Kept entries of a row and of a column.
        m: Side of a tile.
        entries: The address of the entries.
        rows: The address of the prices of rows.
        cols: The address of the prices of columns.
        flags: The address of the flags.
    """
    with _loop(b, m, LANES * m, LANES) as (line, row):
        own = load(b, rows, row)
        for j in range(m):
            at = b.add(line, Constant(I64, LANES * j))
            more = b.icmp_signed(">", b.sub(load(b, entries, at), own), load(b, cols, LANES * j))
            store(b, b.zext(more, vector_of(I8)), flags, at, I8)
    return ZERO


def miscounted(b: IRBuilder, n: int, m: int, flags: Value, _: Value, __: Value, ___: Value) -> Value:
    """Return the tiles that have a row or column without exactly n flags, as the bits of a number.

    Args:
        b: The builder that the code is appended to.
        n: Kept entries of a row and of a column.
        m: Side of a tile.
        flags: The address of the flags.
        _: Unused.
        __: Unused.
        ___: Unused.
    """
    wrong = cgutils.alloca_once_value(b, splat(0, IntType(1)))
    for step, stride in ((LANES * m, LANES), (LANES, LANES * m)):
        with _loop(b, m, step) as (line,):
            entries = [load(b, flags, b.add(line, Constant(I64, stride * j)), I8) for j in range(m)]
            amiss = b.icmp_signed("!=", reduce(b.add, entries), splat(n))
            b.store(b.or_(b.load(wrong), amiss), wrong)
    return b.zext(b.bitcast(b.load(wrong), IntType(LANES)), I64)


def add_pruned(b: IRBuilder, n: int, m: int, entries: Value, flags: Value, pruned: Value, _: Value) -> Value:
    """Write the sum of the integers of each tile that are not flagged. Sums are exact up to half the largest over m.

    Args:
        b: The builder that the code is appended to.
        n: Kept entries of a row and of a column.
        m: Side of a tile.
        entries: The address of the entries.
        flags: The address of the flags.
        pruned: The address of the sums.
        _: Unused.
    """
    store(b, splat(0), pruned, 0)
    with _loop(b, m, LANES * m) as (line,):
        left = []
        for j in range(m):
            at = b.add(line, Constant(I64, LANES * j))
            kept = b.icmp_signed("!=", load(b, flags, at, I8), splat(0))
            least = minimum(b, load(b, entries, at), splat(MOST_PRUNED // m**2))
            left.append(b.select(kept, splat(0), least))
        store(b, reduce(b.add, left, load(b, pruned, 0)), pruned, 0)
    return ZERO


@contextmanager
def _loop(b: IRBuilder, times: int, *steps: int) -> Iterator[list[Value]]:
    """Emit a loop, and yield its counter times each of these steps. The default step is the lanes of a vector."""
    with cgutils.for_range(b, Constant(I64, times)) as loop:
        yield [b.mul(loop.index, Constant(I64, step)) for step in steps or (LANES,)]


def gather_row(b: IRBuilder, n: int, m: int, flags: Value, row: Value, _: Value, __: Value) -> Value:
    """Write flags of entries to a row of each tile, side by side.

    Args:
        b: The builder that the code is appended to.
        n: Kept entries of a row and of a column.
        m: Side of a tile.
        flags: The address of the flags.
        row: The address of the row.
        _: Unused.
        __: Unused.
    """
    for j, bits in enumerate(restored(b, [load(b, flags, LANES * j, I8) for j in range(m)])):
        store(b, bits, row, LANES * j, I8)
    return ZERO


def relax(b: IRBuilder, line: Value, allowed: Value, far: Value, origin: Value, base: Value, source: Value) -> Value:
    """Do a step of the Bellman-Ford algorithm: lower `far` to `base` + `line` where that is less and allowed.

    Where it is lowered, `origin` becomes `source`. Return which entries changed, as the bits of a number.

    Args:
        b: The builder that the code is appended to.
        line: The address of the costs of steps.
        allowed: The address of flags of the steps that are allowed.
        far: The address of the distances.
        origin: The address of where each path came from.
        base: The distance of the line that the steps leave.
        source: The number of that line.
    """
    base, source = (broadcast(b, number) for number in (base, source))
    reached, before = b.add(base, load(b, line, 0)), load(b, far, 0)
    nearer = b.and_(b.icmp_signed("<", reached, before), b.icmp_signed("!=", load(b, allowed, 0), splat(0)))
    store(b, b.select(nearer, reached, before), far, 0)
    store(b, b.select(nearer, source, load(b, origin, 0)), origin, 0)
    return b.zext(b.bitcast(nearer, IntType(LANES)), I64)


def keep_row(b: IRBuilder, n: int, m: int, flags: Value, source: Value, target: Value, _: Value) -> Value:
    """Write the flagged entries of a row of each tile, side by side, and +0.0 elsewhere and for -0.0.

    Args:
        b: The builder that the code is appended to.
        n: Kept entries of a row and of a column.
        m: Side of a tile.
        flags: The address of the flags of the row.
        source: The address of the row.
        target: The address to write to.
        _: Unused.
    """
    return _keep(b, LANES * m, flags, source, target)


def copy_kept(b: IRBuilder, n: int, m: int, flags: Value, source: Value, target: Value, _: Value) -> Value:
    """Do as `keep_row` with the row of one tile.

    Args:
        b: The builder that the code is appended to.
        n: Kept entries of a row and of a column.
        m: Side of a tile.
        flags: The address of the flags of the row.
        source: The address of the row.
        target: The address to write to.
        _: Unused.
    """
    return _keep(b, m, flags, source, target)


def _keep(b: IRBuilder, length: int, flags: Value, source: Value, target: Value) -> Value:
    size = min(length, LANES)
    bits, flag = VectorType(I32, size), VectorType(I8, size)
    for at in range(0, length, size):
        addresses = [b.add(address, Constant(I64, 4 * at)) for address in (source, target)]
        given, out = (b.inttoptr(address, bits.as_pointer()) for address in addresses)
        kept = b.load(b.inttoptr(b.add(flags, Constant(I64, at)), flag.as_pointer()), align=1)
        number, zero = b.load(given, align=4), Constant(bits, [0] * size)
        dropped = b.icmp_signed("==", kept, Constant(flag, [0] * size))
        negative_zero = b.icmp_signed("==", number, Constant(bits, [-(1 << 31)] * size))
        b.store(b.select(b.or_(dropped, negative_zero), zero, number), out, align=4)
    return ZERO
