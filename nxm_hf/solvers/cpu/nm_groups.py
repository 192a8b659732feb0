"""Operations on sixteen N:M groups at a time, as LLVM code, such as mask, projection and ADMM update.

All have the signature of `Body`: the groups, the addresses of up to three tensors, and the bits of an fp32 factor. The
loop around an operation adds up its results.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

from llvmlite import ir
from llvmlite.ir import Constant, IntType, IRBuilder, Value

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
    packed_flags,
    pointer,
    splat,
    store,
    vector_of,
)

ONE = 0x3F800000  # the bits of 1.0
WORD = 64 // LANES  # vectors whose flags fill a word


@dataclass(frozen=True)
class Groups:
    """Sixteen groups in a row, in m vectors of sixteen entries, with the builder of their code.

    Args:
        b: The builder.
        n: Kept entries of a group.
        m: Entries of a group.
        entry: The integer type of an entry.
        infinity: The bits of infinity in the format of the entries.
        at: The number of the first entry.
    """

    b: IRBuilder
    n: int
    m: int
    entry: ir.Type
    infinity: int
    at: Value

    def load(self, address: Value) -> list[Value]:
        """Load the groups of a tensor of floats, as bits.

        Args:
            address: The tensor.
        """
        return [load(self.b, address, self._step(i), self.entry) for i in range(self.m)]

    def store(self, bits: Value, address: Value, i: int) -> None:
        """Store one vector of a tensor of floats.

        Args:
            bits: The bits of the floats.
            address: The tensor.
            i: The number of the vector.
        """
        store(self.b, bits, address, self._step(i), self.entry)

    def load_flags(self, address: Value) -> list[Value]:
        """Load the groups of a mask, as flags.

        Args:
            address: The mask.
        """
        row = [load(self.b, address, self._step(i), I8) for i in range(self.m)]
        return [self.b.icmp_signed("!=", byte, splat(0)) for byte in row]

    def store_flags(self, flags: list[Value], address: Value) -> None:
        """Store the groups of a mask.

        Args:
            flags: The flags.
            address: The mask.
        """
        for i, flag in enumerate(flags):
            self.b.store(self.b.zext(flag, vector_of(I8)), pointer(self.b, address, self._step(i), I8), align=1)

    def magnitudes(self, row: list[Value]) -> list[Value]:
        """Return the bits of absolute values.

        Args:
            row: The bits of the floats.
        """
        return [magnitude(self.b, bits, self.entry) for bits in row]

    def largest(self, keys: list[Value]) -> list[Value]:
        """Return the flags of the n largest of each group.

        Args:
            keys: Integers in the order of the numbers that they stand for.
        """
        return kept_flags(self.b, keys, self.n)

    def unless_nan(self, keys: list[Value], number: Value) -> Value:
        """Return a number, or -1 where a magnitude has larger bits than infinity.

        Args:
            keys: The bits of magnitudes.
            number: The number.
        """
        largest = reduce(lambda x, y: maximum(self.b, y, x), keys)
        nan = self.b.icmp_signed(">", largest, splat(self.infinity))
        return self.b.select(any_set(self.b, nan), Constant(I64, -1), number)

    def _step(self, i: int) -> Value:
        return self.b.add(self.at, Constant(I64, LANES * i))


Body = Callable[[Groups, Value, Value, Value, Value], Value]  # groups, x, y, z, factor


def _mask(g: Groups, scores: Value, out: Value, *_: Value) -> Value:
    """Write the mask of scores."""
    g.store_flags(g.largest([ordered(g.b, bits, g.entry) for bits in g.load(scores)]), out)
    return ZERO


def _magnitude_mask(g: Groups, weight: Value, out: Value, *_: Value) -> Value:
    """Write the mask of |weight|. Return -1 if there is a NaN."""
    keys = g.magnitudes(g.load(weight))
    g.store_flags(g.largest(keys), out)
    return g.unless_nan(keys, ZERO)


def _project(g: Groups, weight: Value, out: Value, *_: Value) -> Value:
    """Write the largest entries, and +0.0 elsewhere. Return -1 if there is a NaN."""
    row = g.load(weight)
    keys = g.magnitudes(row)
    for i, (bits, key, flag) in enumerate(zip(row, keys, g.largest(keys), strict=True)):
        flag = g.b.and_(flag, g.b.icmp_signed("!=", key, splat(0)))  # -0.0 becomes +0.0
        g.store(g.b.select(flag, bits, splat(0)), out, i)
    return g.unless_nan(keys, ZERO)


def _admm_update(g: Groups, weight: Value, r: Value, *_: Value) -> Value:
    """Set V = W + U, then R = V where the mask of |V| is and -V elsewhere.

    Return how many entries of the mask changed, or -1 if there is a NaN.
    """
    b, old_row = g.b, g.load(r)
    old_keys = g.magnitudes(old_row)
    before = g.largest(old_keys)
    row = [
        _minus(b, w, b.select(flag, splat(0), old))
        for w, old, flag in zip(g.load(weight), old_row, before, strict=True)
    ]
    keys = g.magnitudes(row)
    after = g.largest(keys)
    for i, (bits, flag) in enumerate(zip(row, after, strict=True)):
        g.store(b.select(flag, bits, b.xor(bits, splat(1 << 31))), r, i)
    return g.unless_nan([*old_keys, *keys], _count_changes(b, before, after))


def _remask(g: Groups, weight: Value, out: Value, dense: Value, gain: Value) -> Value:
    """Write a new mask over the old one, then set D = W and W = W where the mask keeps and W * gain elsewhere.

    Return how many entries changed, plus 2**32 times how many were kept before; or -1 if there is a NaN.
    """
    row = g.load(weight)
    keys, after, counts = _new_mask(g, row, out)
    for i, (bits, flag) in enumerate(zip(row, after, strict=True)):
        g.store(bits, dense, i)
        g.store(_scaled(g.b, bits, flag, gain), weight, i)
    return g.unless_nan(keys, counts)


def _remask_from(g: Groups, dense: Value, out: Value, weight: Value, gain: Value) -> Value:
    """Write a new mask of D over the old one, then set W = D where the mask keeps and D * gain elsewhere.

    Return what `_remask` returns.
    """
    row = g.load(dense)
    keys, after, counts = _new_mask(g, row, out)
    for i, (bits, flag) in enumerate(zip(row, after, strict=True)):
        g.store(_scaled(g.b, bits, flag, gain), weight, i)
    return g.unless_nan(keys, counts)


def _new_mask(g: Groups, row: list[Value], out: Value) -> tuple[list[Value], list[Value], Value]:
    """Write a new mask over the old one. Return magnitudes, flags of the new mask, and both counts in one number."""
    keys = g.magnitudes(row)
    before = g.load_flags(out)
    after = g.largest(keys)
    g.store_flags(after, out)
    return keys, after, g.b.add(_count_changes(g.b, before, after), g.b.shl(count(g.b, before), Constant(I64, 32)))


def _keep(g: Groups, weight: Value, mask: Value, *_: Value) -> Value:
    """Write +0.0 where the mask prunes, in place, and for -0.0."""
    return _kept(g, weight, mask, weight)


def _kept(g: Groups, weight: Value, mask: Value, out: Value, *_: Value) -> Value:
    """Write the kept entries of a weight, and +0.0 elsewhere and for -0.0."""
    for i, (bits, flag) in enumerate(zip(g.load(weight), g.load_flags(mask), strict=True)):
        kept = g.b.and_(flag, g.b.icmp_signed("!=", magnitude(g.b, bits, g.entry), splat(0)))
        g.store(g.b.select(kept, bits, splat(0)), out, i)
    return ZERO


def _scale(g: Groups, x: Value, mask: Value, _: Value, by: Value) -> Value:
    """Multiply pruned entries by a factor, in place. Return -1 if the result has a NaN."""
    products = [_scaled(g.b, bits, flag, by) for bits, flag in zip(g.load(x), g.load_flags(mask), strict=True)]
    for i, product in enumerate(products):
        g.store(product, x, i)
    return g.unless_nan(g.magnitudes(products), ZERO)


def _pull(g: Groups, x: Value, mask: Value, dense: Value, by: Value) -> Value:
    """Add D times a factor where the mask prunes, in place. The two may be one tensor."""
    b, rows = g.b, (g.load(x), g.load_flags(mask), g.load(dense))
    for i, (bits, flag, pulling) in enumerate(zip(*rows, strict=True)):
        pruned = b.fmul(b.bitcast(pulling, FLOATS), b.uitofp(b.not_(flag), FLOATS))
        total = multiply_add(b, pruned, _floats(b, by), b.bitcast(bits, FLOATS))
        g.store(b.bitcast(total, vector_of(I32)), x, i)
    return ZERO


def _store(g: Groups, weight: Value, mask: Value, dense: Value, gain: Value) -> Value:
    """Set D = W, then multiply the pruned entries of W by the gain."""
    for i, (bits, flag) in enumerate(zip(g.load(weight), g.load_flags(mask), strict=True)):
        g.store(bits, dense, i)
        g.store(_scaled(g.b, bits, flag, gain), weight, i)
    return ZERO


def _show(g: Groups, dense: Value, mask: Value, weight: Value, gain: Value) -> Value:
    """Set W = D where the mask keeps and D * gain elsewhere."""
    for i, (bits, flag) in enumerate(zip(g.load(dense), g.load_flags(mask), strict=True)):
        g.store(_scaled(g.b, bits, flag, gain), weight, i)
    return ZERO


def _count_entries(g: Groups, weight: Value, *_: Value) -> Value:
    """Count the non-zero entries, plus 2**32 times the errors: each group with more than n of them, and each -0.0.

    Return -1 if there is a NaN.
    """
    b, row = g.b, g.load(weight)
    nonzeros = wrong = ZERO
    nan = splat(0, IntType(1))
    for first in range(0, g.m, WORD):  # one word of flags after the other: CPUs have registers for few vectors
        part = row[first : first + WORD]
        keys = g.magnitudes(part)
        nonzero = packed_flags(b, [b.icmp_signed("!=", key, splat(0)) for key in keys])
        lowest = splat(-(1 << (g.entry.width - 1)))
        negative_zero = packed_flags(b, [b.icmp_signed("==", bits, lowest) for bits in part])
        nonzeros = b.add(nonzeros, b.ctpop(nonzero))
        wrong = b.add(wrong, b.add(_full_fields(b, nonzero, g.n, g.m), b.ctpop(negative_zero)))
        nan = reduce(b.or_, (b.icmp_signed(">", key, splat(g.infinity)) for key in keys), nan)
    return b.select(any_set(b, nan), Constant(I64, -1), b.add(nonzeros, b.shl(wrong, Constant(I64, 32))))


def _count_strays(g: Groups, weight: Value, mask: Value, *_: Value) -> Value:
    """Count pruned entries that are not +0.0, kept ones that are -0.0, and groups that keep more than n entries."""
    b, row, kept = g.b, g.load(weight), g.load_flags(mask)
    lowest = splat(-(1 << (g.entry.width - 1)))
    strays = ZERO
    for first in range(0, g.m, WORD):
        part, flags = row[first : first + WORD], packed_flags(b, kept[first : first + WORD])
        nonzero = packed_flags(b, [b.icmp_signed("!=", bits, splat(0)) for bits in part])
        negative_zero = packed_flags(b, [b.icmp_signed("==", bits, lowest) for bits in part])
        stray = b.or_(b.and_(nonzero, b.not_(flags)), negative_zero)
        strays = b.add(strays, b.add(b.ctpop(stray), _full_fields(b, flags, g.n, g.m)))
    return strays


def _full_fields(b: IRBuilder, word: Value, n: int, m: int) -> Value:
    """Return how many m-bit fields of a word have more than n bits set. All fields are counted at once."""
    if n >= m:
        return ZERO
    width = 1
    while width < m:
        low = _in_fields((1 << width) - 1, 2 * width)
        word = b.add(b.and_(word, low), b.and_(b.lshr(word, Constant(I64, width)), low))
        width *= 2
    high = 1 << (m - 1)  # the highest bit of a field: a sum above n carries into it
    return b.ctpop(b.and_(b.add(word, _in_fields(high - 1 - n, m)), _in_fields(high, m)))


def _in_fields(number: int, width: int) -> Constant:
    """Return a word of 64 bits with a number in each of its fields."""
    return Constant(I64, sum(number << at for at in range(0, 64, width)))


OPERATIONS: dict[str, Body] = {
    "mask": _mask,
    "magnitude_mask": _magnitude_mask,
    "project": _project,
    "admm_update": _admm_update,
    "remask": _remask,
    "remask_with_gain": _remask,
    "remask_from": _remask_from,
    "keep": _keep,
    "kept": _kept,
    "scale": _scale,
    "pull": _pull,
    "store": _store,
    "show": _show,
    "count_entries": _count_entries,
    "count_strays": _count_strays,
}


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


def _minus(b: IRBuilder, x: Value, y: Value) -> Value:
    """Return the bits of x - y, from the bits of two floats."""
    return b.bitcast(b.fsub(b.bitcast(x, FLOATS), b.bitcast(y, FLOATS)), vector_of(I32))


def _count_changes(b: IRBuilder, before: list[Value], after: list[Value]) -> Value:
    return count(b, [b.xor(old, new) for old, new in zip(before, after, strict=True)])
