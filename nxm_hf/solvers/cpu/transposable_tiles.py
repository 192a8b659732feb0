"""What is done to the rows and columns of sixteen m x m tiles at a time; entry (i, j) of all stands in one vector."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce

from llvmlite import ir
from numba.core import cgutils

from nxm_hf.solvers.cpu.llvm_vectors import (
    I8,
    I32,
    I64,
    LANES,
    Builder,
    Value,
    in_every_lane,
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

FLOAT, DOUBLE = vector_of(ir.FloatType()), vector_of(ir.DoubleType())
INFINITE = 0x7F800000  # as the bits of a float
NOTHING = ir.Constant(I64, 0)


def copy_scores(b: Builder, n: int, m: int, source: Value, target: Value, _: Value, __: Value) -> Value:
    """Copy m scores."""
    return _copy(b, ir.VectorType(I32, m), source, target)


def copy_flags(b: Builder, n: int, m: int, source: Value, target: Value, _: Value, __: Value) -> Value:
    """Copy m flags."""
    return _copy(b, ir.VectorType(I8, m), source, target)


def _copy(b: Builder, kind: ir.Type, source: Value, target: Value) -> Value:
    b.store(b.load(b.inttoptr(source, kind.as_pointer()), align=1), b.inttoptr(target, kind.as_pointer()), align=1)
    return NOTHING


def spread_row(b: Builder, n: int, m: int, row: Value, entries: Value, peak: Value, _: Value) -> Value:
    """From a row of each tile, side by side, to its entries; `peak` becomes the largest magnitude, as bits."""
    found = transposed(b, [load(b, row, LANES * j) for j in range(m)])
    for j, bits in enumerate(found):
        store(b, bits, entries, LANES * j)
    sizes = [magnitude(b, bits) for bits in found]
    store(b, reduce(lambda x, y: maximum(b, x, y), sizes, load(b, peak, 0)), peak, 0)
    return NOTHING


def round_all(b: Builder, n: int, m: int, entries: Value, scale: Value, total: Value, _: Value) -> Value:
    """From floats to whole numbers, in place: times a double of each tile, and rounded; what is infinite becomes 0.

    `total`, floats, grows by their magnitudes.
    """
    scales = b.load(b.inttoptr(scale, DOUBLE.as_pointer()), align=8)
    half, less = (ir.Constant(DOUBLE, [number] * LANES) for number in (0.5, -0.5))
    with _each(b, m * m) as (at,):
        bits = load(b, entries, at)
        bits = b.select(b.icmp_signed("<", magnitude(b, bits), splat(INFINITE)), bits, splat(0))
        scaled = b.fmul(b.fpext(b.bitcast(bits, FLOAT), DOUBLE), scales)
        nearest = b.fadd(scaled, b.select(b.icmp_signed("<", bits, splat(0)), less, half))
        whole = b.fptosi(nearest, vector_of(I32))
        store(b, whole, entries, at)
        size = b.sitofp(maximum(b, whole, b.neg(whole)), FLOAT)
        store(b, b.bitcast(b.fadd(b.bitcast(load(b, total, 0), FLOAT), size), vector_of(I32)), total, 0)
    return NOTHING


def price_rows(b: Builder, n: int, m: int, entries: Value, cols: Value, rows: Value, _: Value) -> Value:
    """The price of each row, given those of the columns."""
    with _each(b, m, LANES * m, LANES) as (line, at):
        store(b, _price(b, n, entries, line, LANES, cols, m), rows, at)
    return NOTHING


def price_cols(b: Builder, n: int, m: int, entries: Value, rows: Value, cols: Value, _: Value) -> Value:
    """The price of each column, given those of the rows."""
    with _each(b, m) as (line,):
        store(b, _price(b, n, entries, line, LANES * m, rows, m), cols, line)
    return NOTHING


def _price(b: Builder, n: int, entries: Value, line: Value, stride: int, prices: Value, m: int) -> Value:
    """Halfway between the n-th and the next of what the others' prices leave of a line."""
    places = [b.add(line, ir.Constant(I64, stride * j)) for j in range(m)]
    left = [b.sub(load(b, entries, at), load(b, prices, LANES * j)) for j, at in enumerate(places)]
    high, low = ranked(b, left, n - 1, n)
    return b.add(low, b.ashr(b.sub(high, low), splat(1)))


def keep_all(b: Builder, n: int, m: int, entries: Value, rows: Value, cols: Value, flags: Value) -> Value:
    """Flag what is worth more than its row's and column's prices."""
    with _each(b, m, LANES * m, LANES) as (line, row):
        own = load(b, rows, row)
        for j in range(m):
            at = b.add(line, ir.Constant(I64, LANES * j))
            more = b.icmp_signed(">", b.sub(load(b, entries, at), own), load(b, cols, LANES * j))
            store(b, b.zext(more, vector_of(I8)), flags, at, I8)
    return NOTHING


def miscounted(b: Builder, n: int, m: int, flags: Value, _: Value, __: Value, ___: Value) -> Value:
    """The tiles, as bits of a number, with more or fewer than n flags in a row or column."""
    wrong = cgutils.alloca_once_value(b, splat(0, ir.IntType(1)))
    for step, stride in ((LANES * m, LANES), (LANES, LANES * m)):
        with _each(b, m, step) as (line,):
            entries = [load(b, flags, b.add(line, ir.Constant(I64, stride * j)), I8) for j in range(m)]
            amiss = b.icmp_signed("!=", reduce(b.add, entries), splat(n))
            b.store(b.or_(b.load(wrong), amiss), wrong)
    return b.zext(b.bitcast(b.load(wrong), ir.IntType(LANES)), I64)


@contextmanager
def _each(b: Builder, times: int, *steps: int) -> Iterator[list[Value]]:
    """A loop of compiled code; the multiples of these steps, or of a vector."""
    with cgutils.for_range(b, ir.Constant(I64, times)) as loop:
        yield [b.mul(loop.index, ir.Constant(I64, step)) for step in steps or (LANES,)]


def gather_row(b: Builder, n: int, m: int, flags: Value, row: Value, _: Value, __: Value) -> Value:
    """From flags of entries to a row of each tile, side by side."""
    for j, bits in enumerate(restored(b, [load(b, flags, LANES * j, I8) for j in range(m)])):
        store(b, bits, row, LANES * j, I8)
    return NOTHING


def relax(b: Builder, line: Value, allowed: Value, far: Value, origin: Value, base: Value, source: Value) -> Value:
    """Where `base` + line is nearer than `far`, and allowed: make it so, come from `source`, and flag its bit."""
    base, source = (in_every_lane(b, number) for number in (base, source))
    reached, before = b.add(base, load(b, line, 0)), load(b, far, 0)
    nearer = b.and_(b.icmp_signed("<", reached, before), b.icmp_signed("!=", load(b, allowed, 0), splat(0)))
    store(b, b.select(nearer, reached, before), far, 0)
    store(b, b.select(nearer, source, load(b, origin, 0)), origin, 0)
    return b.zext(b.bitcast(nearer, ir.IntType(LANES)), I64)
