"""Operations on sixteen N:M groups at a time, as LLVM code: their mask, their projection, their ADMM update ...

All have the signature of `Body`: `at` is the number of the first entry, up to three addresses of tensors follow, and
then the bits of an fp32 factor. What each returns is added up by the loop around it.
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
    broadcast,
    count,
    kept_flags,
    load,
    magnitude,
    maximum,
    multiply_add,
    ordered,
    pointer,
    splat,
    store,
    vector_of,
)

ONE = 0x3F800000  # the bits of 1.0
# (builder, n, m, integer type of an entry, bits of infinity, at, x, y, z, factor)
Body = Callable[[IRBuilder, int, int, ir.Type, int, Value, Value, Value, Value, Value], Value]


def _mask(
    b: IRBuilder, n: int, m: int, entry: ir.Type, infinity: int, at: Value, scores: Value, out: Value, *_: Value
) -> Value:
    """Write the mask of scores."""
    keys = [ordered(b, bits, entry) for bits in _row(b, scores, at, m, entry)]
    _store_flags(b, kept_flags(b, keys, n), out, at)
    return ZERO


def _magnitude_mask(
    b: IRBuilder, n: int, m: int, entry: ir.Type, infinity: int, at: Value, weight: Value, out: Value, *_: Value
) -> Value:
    """Write the mask of |weight|. Return -1 if there is a NaN."""
    keys = [magnitude(b, bits, entry) for bits in _row(b, weight, at, m, entry)]
    _store_flags(b, kept_flags(b, keys, n), out, at)
    return _unless_nan(b, keys, infinity, ZERO)


def _project(
    b: IRBuilder, n: int, m: int, entry: ir.Type, infinity: int, at: Value, weight: Value, out: Value, *_: Value
) -> Value:
    """Write the largest entries, and +0.0 elsewhere. Return -1 if there is a NaN."""
    row = _row(b, weight, at, m, entry)
    keys = [magnitude(b, bits, entry) for bits in row]
    for i, (bits, key, flag) in enumerate(zip(row, keys, kept_flags(b, keys, n), strict=True)):
        flag = b.and_(flag, b.icmp_signed("!=", key, splat(0)))  # -0.0 becomes +0.0
        store(b, b.select(flag, bits, splat(0)), out, _step(b, at, i), entry)
    return _unless_nan(b, keys, infinity, ZERO)


def _admm_update(
    b: IRBuilder, n: int, m: int, entry: ir.Type, infinity: int, at: Value, weight: Value, r: Value, *_: Value
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
    b: IRBuilder,
    n: int,
    m: int,
    entry: ir.Type,
    infinity: int,
    at: Value,
    weight: Value,
    out: Value,
    dense: Value,
    gain: Value,
) -> Value:
    """Write a new mask over the old one, then set D = W and W = W where the mask keeps and W * gain elsewhere.

    Return how many entries changed, plus 2**32 times how many were kept before; or -1 if there is a NaN.
    """
    row = _row(b, weight, at, m, entry)
    keys, after, counts = _new_mask(b, n, row, entry, out, at)
    for i, (bits, flag) in enumerate(zip(row, after, strict=True)):
        store(b, bits, dense, _step(b, at, i), entry)
        store(b, _scaled(b, bits, flag, gain), weight, _step(b, at, i), entry)
    return _unless_nan(b, keys, infinity, counts)


def _remask_from(
    b: IRBuilder,
    n: int,
    m: int,
    entry: ir.Type,
    infinity: int,
    at: Value,
    dense: Value,
    out: Value,
    weight: Value,
    gain: Value,
) -> Value:
    """Write a new mask of D over the old one, then set W = D where the mask keeps and D * gain elsewhere.

    Return what `_remask` returns.
    """
    row = _row(b, dense, at, m, entry)
    keys, after, counts = _new_mask(b, n, row, entry, out, at)
    for i, (bits, flag) in enumerate(zip(row, after, strict=True)):
        store(b, _scaled(b, bits, flag, gain), weight, _step(b, at, i), entry)
    return _unless_nan(b, keys, infinity, counts)


def _new_mask(
    b: IRBuilder, n: int, row: list[Value], entry: ir.Type, out: Value, at: Value
) -> tuple[list[Value], list[Value], Value]:
    """Write a new mask over the old one. Return magnitudes, flags of the new mask, and both counts in one number."""
    keys = [magnitude(b, bits, entry) for bits in row]
    before = _flags(b, out, at, len(row))
    after = kept_flags(b, keys, n)
    _store_flags(b, after, out, at)
    return keys, after, b.add(_count_changes(b, before, after), b.shl(count(b, before), Constant(I64, 32)))


def _keep(
    b: IRBuilder, n: int, m: int, entry: ir.Type, infinity: int, at: Value, weight: Value, mask: Value, *_: Value
) -> Value:
    """Write +0.0 where the mask prunes, in place, and for -0.0."""
    for i, (bits, flag) in enumerate(zip(_row(b, weight, at, m, entry), _flags(b, mask, at, m), strict=True)):
        kept = b.and_(flag, b.icmp_signed("!=", magnitude(b, bits, entry), splat(0)))
        store(b, b.select(kept, bits, splat(0)), weight, _step(b, at, i), entry)
    return ZERO


def _scale(
    b: IRBuilder, n: int, m: int, entry: ir.Type, infinity: int, at: Value, x: Value, mask: Value, _: Value, by: Value
) -> Value:
    """Multiply what the mask prunes by a factor, in place. Return -1 if a NaN is there then."""
    keys = []
    for i, (bits, flag) in enumerate(zip(_row(b, x, at, m, entry), _flags(b, mask, at, m), strict=True)):
        product = _scaled(b, bits, flag, by)
        store(b, product, x, _step(b, at, i), entry)
        keys.append(magnitude(b, product, entry))
    return _unless_nan(b, keys, infinity, ZERO)


def _pull(
    b: IRBuilder,
    n: int,
    m: int,
    entry: ir.Type,
    infinity: int,
    at: Value,
    x: Value,
    mask: Value,
    dense: Value,
    by: Value,
) -> Value:
    """Add D times a factor where the mask prunes, in place. The two may be one tensor."""
    rows = (_row(b, x, at, m, entry), _flags(b, mask, at, m), _row(b, dense, at, m, entry))
    for i, (bits, flag, pulling) in enumerate(zip(*rows, strict=True)):
        pruned = b.fmul(b.bitcast(pulling, FLOATS), b.uitofp(b.not_(flag), FLOATS))
        total = multiply_add(b, pruned, _floats(b, by), b.bitcast(bits, FLOATS))
        store(b, b.bitcast(total, vector_of(I32)), x, _step(b, at, i), entry)
    return ZERO


def _store(
    b: IRBuilder,
    n: int,
    m: int,
    entry: ir.Type,
    infinity: int,
    at: Value,
    weight: Value,
    mask: Value,
    dense: Value,
    gain: Value,
) -> Value:
    """Set D = W, then multiply what the mask prunes of W by the gain."""
    for i, (bits, flag) in enumerate(zip(_row(b, weight, at, m, entry), _flags(b, mask, at, m), strict=True)):
        store(b, bits, dense, _step(b, at, i), entry)
        store(b, _scaled(b, bits, flag, gain), weight, _step(b, at, i), entry)
    return ZERO


def _show(
    b: IRBuilder,
    n: int,
    m: int,
    entry: ir.Type,
    infinity: int,
    at: Value,
    dense: Value,
    mask: Value,
    weight: Value,
    gain: Value,
) -> Value:
    """Set W = D where the mask keeps and D * gain elsewhere."""
    for i, (bits, flag) in enumerate(zip(_row(b, dense, at, m, entry), _flags(b, mask, at, m), strict=True)):
        store(b, _scaled(b, bits, flag, gain), weight, _step(b, at, i), entry)
    return ZERO


OPERATIONS: dict[str, Body] = {
    "mask": _mask,
    "magnitude_mask": _magnitude_mask,
    "project": _project,
    "admm_update": _admm_update,
    "remask": _remask,
    "remask_with_gain": _remask,
    "remask_from": _remask_from,
    "keep": _keep,
    "scale": _scale,
    "pull": _pull,
    "store": _store,
    "show": _show,
}


def _step(b: IRBuilder, at: Value, i: int) -> Value:
    return b.add(at, Constant(I64, LANES * i))


def _row(b: IRBuilder, address: Value, at: Value, m: int, entry: ir.Type) -> list[Value]:
    """Load sixteen groups in a row, in m vectors."""
    return [load(b, address, _step(b, at, i), entry) for i in range(m)]


def _flags(b: IRBuilder, mask: Value, at: Value, m: int) -> list[Value]:
    """Load the mask of sixteen groups in a row, as flags."""
    return [b.icmp_signed("!=", byte, splat(0)) for byte in _row(b, mask, at, m, I8)]


def _scaled(b: IRBuilder, bits: Value, kept: Value, factor: Value) -> Value:
    """Return the bits of floats times 1 where they are kept, and times a factor elsewhere.

    A product by 0 keeps the sign of its zero, and makes a NaN of an infinity, as torch does.
    """
    one = b.bitcast(splat(ONE), FLOATS)
    product = b.fmul(b.bitcast(bits, FLOATS), b.select(kept, one, _floats(b, factor)))
    return b.bitcast(product, vector_of(I32))


def _floats(b: IRBuilder, bits: Value) -> Value:
    """Return a vector with one float, given by its bits, in every lane."""
    return b.bitcast(broadcast(b, bits), FLOATS)


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
