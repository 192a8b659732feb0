"""Steps on the rows and columns of sixteen m x m tiles at a time, as LLVM code.

Entry (i, j) of all sixteen tiles is one vector. Steps are called with n, m and four addresses. Some use only the first
of these.
"""

from collections.abc import Iterator
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
    ranked,
    restored,
    splat,
    store,
    transposed,
    vector_of,
)

INFINITE = INFINITY_BITS[torch.float32]


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
    scales = b.load(b.inttoptr(scale, DOUBLES.as_pointer()), align=8)
    half, minus_half = (Constant(DOUBLES, [number] * LANES) for number in (0.5, -0.5))
    readable = broadcast(b, readable)
    with _loop(b, m * m) as (at,):
        bits = b.and_(load(b, entries, at), readable)
        bits = b.select(b.icmp_signed("<", magnitude(b, bits), splat(INFINITE)), bits, splat(0))
        scaled = b.fmul(b.fpext(b.bitcast(bits, FLOATS), DOUBLES), scales)
        nearest = b.fadd(scaled, b.select(b.icmp_signed("<", bits, splat(0)), minus_half, half))
        rounded = b.fptosi(nearest, vector_of(I32))
        store(b, rounded, entries, at)
        size = b.sitofp(maximum(b, rounded, b.neg(rounded)), FLOATS)
        store(b, b.bitcast(b.fadd(b.bitcast(load(b, total, 0), FLOATS), size), vector_of(I32)), total, 0)
    return ZERO


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
