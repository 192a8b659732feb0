"""What is done to sixteen N:M groups at a time: their mask, their projection, their part of an ADMM update."""

from collections.abc import Callable

from llvmlite import ir

from nxm_hf.solvers.cpu.llvm_vectors import (
    I8,
    I32,
    I64,
    LANES,
    Builder,
    Value,
    count,
    kept,
    load,
    magnitude,
    order,
    place,
    splat,
    store,
    vector_of,
)

Body = Callable[..., Value]
INFINITY = {("float", 32): 0x7F800000, ("bfloat", 16): 0x7F80, ("half", 16): 0x7C00}
NOTHING, BROKEN = ir.Constant(I64, 0), ir.Constant(I64, -1)


def mask(b: Builder, n: int, m: int, kind: ir.Type, infinity: int, scores: Value, out: Value, _: Value, at: Value):
    """Write the mask of scores."""
    keys = [order(b, bits, kind) for bits in _row(b, scores, at, m, kind)]
    _store_flags(b, kept(b, keys, n), out, at)
    return NOTHING


def magnitude_mask(b: Builder, n: int, m: int, kind: ir.Type, infinity: int, weight, out, _, at):
    """Write the mask of what is largest; -1 if there is a NaN."""
    keys = [magnitude(b, bits, kind) for bits in _row(b, weight, at, m, kind)]
    _store_flags(b, kept(b, keys, n), out, at)
    return _unless_nan(b, keys, infinity, NOTHING)


def project(b: Builder, n: int, m: int, kind: ir.Type, infinity: int, weight, out, _, at):
    """Write what is largest, and +0.0 elsewhere; -1 if there is a NaN."""
    row = _row(b, weight, at, m, kind)
    keys = [magnitude(b, bits, kind) for bits in row]
    for i, (bits, key, keep) in enumerate(zip(row, keys, kept(b, keys, n), strict=True)):
        keep = b.and_(keep, b.icmp_signed("!=", key, splat(0)))  # -0.0 becomes +0.0
        store(b, b.select(keep, bits, splat(0)), out, _step(b, at, i), kind)
    return _unless_nan(b, keys, infinity, NOTHING)


def admm_update(b: Builder, n: int, m: int, kind: ir.Type, infinity: int, weight, r, _, at):
    """V = W + U, then R = V where its mask is and -V elsewhere; how many entries of the mask changed, -1 if NaN."""
    old_row = _row(b, r, at, m, kind)
    old_keys = [magnitude(b, bits, kind) for bits in old_row]
    before = kept(b, old_keys, n)
    row = [
        _minus(b, w, b.select(keep, splat(0), old))
        for w, old, keep in zip(_row(b, weight, at, m, kind), old_row, before, strict=True)
    ]
    keys = [magnitude(b, bits, kind) for bits in row]
    after = kept(b, keys, n)
    for i, (bits, keep) in enumerate(zip(row, after, strict=True)):
        store(b, b.select(keep, bits, b.xor(bits, splat(-(1 << 31)))), r, _step(b, at, i), kind)
    changed = count(b, [b.xor(old, new) for old, new in zip(before, after, strict=True)])
    return _unless_nan(b, [*old_keys, *keys], infinity, changed)


def remask(b: Builder, n: int, m: int, kind: ir.Type, infinity: int, weight, out, dense, at):
    """A new mask over the old one; D = W; W = W * mask. Entries changed, and old ones times 2**32; -1 if NaN."""
    row = _row(b, weight, at, m, kind)
    keys = [magnitude(b, bits, kind) for bits in row]
    before = [b.icmp_signed("!=", old, splat(0)) for old in _row(b, out, at, m, I8)]
    after = kept(b, keys, n)
    _store_flags(b, after, out, at)
    for i, (bits, keep) in enumerate(zip(row, after, strict=True)):
        store(b, bits, dense, _step(b, at, i), kind)
        factor = b.uitofp(keep, vector_of(ir.FloatType()))
        product = b.fmul(b.bitcast(bits, vector_of(ir.FloatType())), factor)
        store(b, b.bitcast(product, vector_of(I32)), weight, _step(b, at, i), kind)
    changed = count(b, [b.xor(old, new) for old, new in zip(before, after, strict=True)])
    both = b.add(changed, b.shl(count(b, before), ir.Constant(I64, 32)))
    return _unless_nan(b, keys, infinity, both)


def keep(b: Builder, n: int, m: int, kind: ir.Type, infinity: int, weight, mask, _, at):
    """+0.0 where the mask prunes, in place, and for -0.0."""
    flags = _row(b, mask, at, m, I8)
    for i, (bits, flag) in enumerate(zip(_row(b, weight, at, m, kind), flags, strict=True)):
        kept = b.and_(b.icmp_signed("!=", flag, splat(0)), b.icmp_signed("!=", magnitude(b, bits, kind), splat(0)))
        store(b, b.select(kept, bits, splat(0)), weight, _step(b, at, i), kind)
    return NOTHING


TASKS: tuple[Body, ...] = (mask, magnitude_mask, project, admm_update, remask, keep)


def _step(b: Builder, at: Value, i: int) -> Value:
    return b.add(at, ir.Constant(I64, LANES * i))


def _row(b: Builder, address: Value, at: Value, m: int, kind: ir.Type) -> list[Value]:
    """Sixteen groups in a row, in m vectors."""
    return [load(b, address, _step(b, at, i), kind) for i in range(m)]


def _store_flags(b: Builder, flags: list[Value], out: Value, at: Value) -> None:
    for i, flag in enumerate(flags):
        b.store(b.zext(flag, vector_of(I8)), place(b, out, _step(b, at, i), I8), align=1)


def _minus(b: Builder, x: Value, y: Value) -> Value:
    """The bits of x - y."""
    floats = vector_of(ir.FloatType())
    return b.bitcast(b.fsub(b.bitcast(x, floats), b.bitcast(y, floats)), vector_of(I32))


def _unless_nan(b: Builder, keys: list[Value], infinity: int, number: Value) -> Value:
    """`number`, or -1 where a magnitude is larger than infinity."""
    most = keys[0]
    for key in keys[1:]:
        most = b.select(b.icmp_signed(">", key, most), key, most)
    bad = b.bitcast(b.icmp_signed(">", most, splat(infinity)), ir.IntType(LANES))
    return b.select(b.icmp_signed("!=", bad, ir.Constant(ir.IntType(LANES), 0)), BROKEN, number)
