"""Operations on sixteen N:M groups at a time, as LLVM code: their mask, their projection, their ADMM update ...

All have the signature of `Body`. `x`, `y` and `z` are the addresses of up to three tensors, and `at` is the number of
the first entry. What each returns is added up by the loop around it.
"""

from collections.abc import Callable
from functools import reduce

from llvmlite import ir
from llvmlite.ir import Constant, IRBuilder, Value

from nxm_hf.solvers.cpu.llvm_vectors import (
    FLOATS,
    I8,
    I32,
    I64,
    LANES,
    ZERO,
    any_set,
    count,
    kept_flags,
    load,
    magnitude,
    maximum,
    ordered,
    pointer,
    splat,
    store,
    vector_of,
)

# (builder, n, m, integer type of an entry, bits of infinity, x, y, z, at)
Body = Callable[[IRBuilder, int, int, ir.Type, int, Value, Value, Value, Value], Value]


def _mask(
    b: IRBuilder, n: int, m: int, entry: ir.Type, infinity: int, scores: Value, out: Value, _: Value, at: Value
) -> Value:
    """Write the mask of scores."""
    keys = [ordered(b, bits, entry) for bits in _row(b, scores, at, m, entry)]
    _store_flags(b, kept_flags(b, keys, n), out, at)
    return ZERO


def _magnitude_mask(
    b: IRBuilder, n: int, m: int, entry: ir.Type, infinity: int, weight: Value, out: Value, _: Value, at: Value
) -> Value:
    """Write the mask of |weight|. Return -1 if there is a NaN."""
    keys = [magnitude(b, bits, entry) for bits in _row(b, weight, at, m, entry)]
    _store_flags(b, kept_flags(b, keys, n), out, at)
    return _unless_nan(b, keys, infinity, ZERO)


def _project(
    b: IRBuilder, n: int, m: int, entry: ir.Type, infinity: int, weight: Value, out: Value, _: Value, at: Value
) -> Value:
    """Write the largest entries, and +0.0 elsewhere. Return -1 if there is a NaN."""
    row = _row(b, weight, at, m, entry)
    keys = [magnitude(b, bits, entry) for bits in row]
    for i, (bits, key, flag) in enumerate(zip(row, keys, kept_flags(b, keys, n), strict=True)):
        flag = b.and_(flag, b.icmp_signed("!=", key, splat(0)))  # -0.0 becomes +0.0
        store(b, b.select(flag, bits, splat(0)), out, _step(b, at, i), entry)
    return _unless_nan(b, keys, infinity, ZERO)


def _admm_update(
    b: IRBuilder, n: int, m: int, entry: ir.Type, infinity: int, weight: Value, r: Value, _: Value, at: Value
) -> Value:
    """Set V = W + U, then R = V where the mask of |V| is and -V elsewhere.

    Return how many entries of the mask changed, or -1 if there is a NaN.
    """
    old_row = _row(b, r, at, m, entry)
    old_keys = [magnitude(b, bits, entry) for bits in old_row]
    before = kept_flags(b, old_keys, n)
    row = [
        _minus(b, w, b.select(flag, splat(0), old))
        for w, old, flag in zip(_row(b, weight, at, m, entry), old_row, before, strict=True)
    ]
    keys = [magnitude(b, bits, entry) for bits in row]
    after = kept_flags(b, keys, n)
    for i, (bits, flag) in enumerate(zip(row, after, strict=True)):
        store(b, b.select(flag, bits, b.xor(bits, splat(-(1 << 31)))), r, _step(b, at, i), entry)
    return _unless_nan(b, [*old_keys, *keys], infinity, _count_changes(b, before, after))


def _remask(
    b: IRBuilder, n: int, m: int, entry: ir.Type, infinity: int, weight: Value, out: Value, dense: Value, at: Value
) -> Value:
    """Write a new mask over the old one, then set D = W and W = W * mask.

    Return how many entries changed, plus 2**32 times how many were kept before; or -1 if there is a NaN.
    """
    row = _row(b, weight, at, m, entry)
    keys = [magnitude(b, bits, entry) for bits in row]
    before = [b.icmp_signed("!=", old, splat(0)) for old in _row(b, out, at, m, I8)]
    after = kept_flags(b, keys, n)
    _store_flags(b, after, out, at)
    for i, (bits, flag) in enumerate(zip(row, after, strict=True)):
        store(b, bits, dense, _step(b, at, i), entry)
        product = b.fmul(b.bitcast(bits, FLOATS), b.uitofp(flag, FLOATS))
        store(b, b.bitcast(product, vector_of(I32)), weight, _step(b, at, i), entry)
    both = b.add(_count_changes(b, before, after), b.shl(count(b, before), Constant(I64, 32)))
    return _unless_nan(b, keys, infinity, both)


def _keep(
    b: IRBuilder, n: int, m: int, entry: ir.Type, infinity: int, weight: Value, mask: Value, _: Value, at: Value
) -> Value:
    """Write +0.0 where the mask prunes, in place, and for -0.0."""
    flags = _row(b, mask, at, m, I8)
    for i, (bits, flag) in enumerate(zip(_row(b, weight, at, m, entry), flags, strict=True)):
        nonzero = b.icmp_signed("!=", magnitude(b, bits, entry), splat(0))
        kept = b.and_(b.icmp_signed("!=", flag, splat(0)), nonzero)
        store(b, b.select(kept, bits, splat(0)), weight, _step(b, at, i), entry)
    return ZERO


OPERATIONS: dict[str, Body] = {
    "mask": _mask,
    "magnitude_mask": _magnitude_mask,
    "project": _project,
    "admm_update": _admm_update,
    "remask": _remask,
    "keep": _keep,
}


def _step(b: IRBuilder, at: Value, i: int) -> Value:
    return b.add(at, Constant(I64, LANES * i))


def _row(b: IRBuilder, address: Value, at: Value, m: int, entry: ir.Type) -> list[Value]:
    """Load sixteen groups in a row, in m vectors."""
    return [load(b, address, _step(b, at, i), entry) for i in range(m)]


def _store_flags(b: IRBuilder, flags: list[Value], out: Value, at: Value) -> None:
    for i, flag in enumerate(flags):
        b.store(b.zext(flag, vector_of(I8)), pointer(b, out, _step(b, at, i), I8), align=1)


def _minus(b: IRBuilder, x: Value, y: Value) -> Value:
    """Return the bits of x - y, from the bits of two floats."""
    return b.bitcast(b.fsub(b.bitcast(x, FLOATS), b.bitcast(y, FLOATS)), vector_of(I32))


def _count_changes(b: IRBuilder, before: list[Value], after: list[Value]) -> Value:
    return count(b, [b.xor(old, new) for old, new in zip(before, after, strict=True)])


def _unless_nan(b: IRBuilder, keys: list[Value], infinity: int, number: Value) -> Value:
    """Return `number`, or -1 where a magnitude has larger bits than infinity."""
    largest = reduce(lambda x, y: maximum(b, y, x), keys)
    nan = b.icmp_signed(">", largest, splat(infinity))
    return b.select(any_set(b, nan), Constant(I64, -1), number)
