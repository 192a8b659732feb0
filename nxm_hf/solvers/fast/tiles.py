"""What is done to the rows and columns of sixteen m x m tiles at a time; entry (i, j) of all stands in one vector."""

from functools import reduce

from llvmlite import ir

from nxm_hf.solvers.fast.vectors import (
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


def round_row(b: Builder, n: int, m: int, entries: Value, scale: Value, total: Value, _: Value) -> Value:
    """From floats to whole numbers, in place: times a double of each tile, and rounded; what is infinite becomes 0.

    `total`, floats, grows by their magnitudes.
    """
    scales = b.load(b.inttoptr(scale, DOUBLE.as_pointer()), align=8)
    half, less = (ir.Constant(DOUBLE, [number] * LANES) for number in (0.5, -0.5))
    sums = b.bitcast(load(b, total, 0), FLOAT)
    for j in range(m):
        bits = load(b, entries, LANES * j)
        bits = b.select(b.icmp_signed("<", magnitude(b, bits), splat(INFINITE)), bits, splat(0))
        scaled = b.fmul(b.fpext(b.bitcast(bits, FLOAT), DOUBLE), scales)
        nearest = b.fadd(scaled, b.select(b.icmp_signed("<", bits, splat(0)), less, half))
        whole = b.fptosi(nearest, vector_of(I32))
        store(b, whole, entries, LANES * j)
        sums = b.fadd(sums, b.sitofp(maximum(b, whole, b.neg(whole)), FLOAT))
    store(b, b.bitcast(sums, vector_of(I32)), total, 0)
    return NOTHING


def price_line(b: Builder, n: int, m: int, line: Value, stride: Value, prices: Value, price: Value) -> Value:
    """The price of a row or column: halfway between the n-th and the next of what the others' prices leave of it."""
    at = [b.mul(stride, ir.Constant(I64, j)) for j in range(m)]
    left = [b.sub(load(b, line, at[j]), load(b, prices, LANES * j)) for j in range(m)]
    high, low = ranked(b, left, n - 1, n)
    store(b, b.add(low, b.ashr(b.sub(high, low), splat(1))), price, 0)
    return NOTHING


def keep_row(b: Builder, n: int, m: int, entries: Value, price: Value, prices: Value, flags: Value) -> Value:
    """Flag what is worth more than its row's and column's prices."""
    own = load(b, price, 0)
    for j in range(m):
        more = b.icmp_signed(">", b.sub(load(b, entries, LANES * j), own), load(b, prices, LANES * j))
        store(b, b.zext(more, vector_of(I8)), flags, LANES * j, I8)
    return NOTHING


def miscounted(b: Builder, n: int, m: int, flags: Value, stride: Value, _: Value, __: Value) -> Value:
    """The tiles, as bits of a number, with more or fewer than n flags in a row or column."""
    each = [load(b, flags, b.mul(stride, ir.Constant(I64, j)), I8) for j in range(m)]
    wrong = b.icmp_signed("!=", reduce(b.add, each), splat(n))
    return b.zext(b.bitcast(wrong, ir.IntType(LANES)), I64)


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
