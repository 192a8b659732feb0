"""Masks of sixteen groups at a time, written in vectors: what LLVM turns into the vector instructions of any CPU.

A "vector" here is an LLVM value of sixteen 32-bit lanes. `transposed` puts entry j of sixteen groups into vector j; a
step of sorting is then a minimum and a maximum, of all sixteen at once. Compilers do not make this of loops, which run
at a third to a tenth of its speed.
"""

from collections.abc import Callable, Sequence
from functools import reduce

from llvmlite import ir

from nxm_hf.solvers.comparator_network import network

LANES = 16
I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
Value = ir.Value
Builder = ir.IRBuilder


def vector_of(kind: ir.Type) -> ir.VectorType:
    """Sixteen lanes of a type."""
    return ir.VectorType(kind, LANES)


def lanes(numbers: Sequence[int], kind: ir.Type = I32) -> ir.Constant:
    """A constant with these numbers in its lanes."""
    return ir.Constant(ir.VectorType(kind, len(numbers)), list(numbers))


def splat(number: int, kind: ir.Type = I32) -> ir.Constant:
    """A constant with one number in every lane."""
    return lanes([number] * LANES, kind)


def in_every_lane(b: Builder, number: Value) -> Value:
    """A number, of 64 bits but small enough, in every lane."""
    one = b.insert_element(splat(0), b.trunc(number, I32), ir.Constant(I32, 0))
    return b.shuffle_vector(one, one, splat(0))


def place(b: Builder, address: Value, offset: Value | int, kind: ir.Type) -> Value:
    """The pointer to `offset` entries of a type after an address."""
    offset = ir.Constant(I64, offset) if isinstance(offset, int) else offset
    return b.inttoptr(b.add(address, b.mul(offset, ir.Constant(I64, kind.width // 8))), vector_of(kind).as_pointer())


def load(b: Builder, address: Value, offset: Value | int, kind: ir.Type = I32) -> Value:
    """Sixteen entries from `offset` on, as 32-bit lanes with the sign of the entry."""
    found = b.load(place(b, address, offset, kind), align=kind.width // 8)
    return found if kind is I32 else b.sext(found, vector_of(I32))


def store(b: Builder, lanes: Value, address: Value, offset: Value | int, kind: ir.Type = I32) -> None:
    """Write sixteen lanes as entries of a type, from `offset` on."""
    narrow = lanes if lanes.type.element is kind else b.trunc(lanes, vector_of(kind))
    b.store(narrow, place(b, address, offset, kind), align=kind.width // 8)


def maximum(b: Builder, x: Value, y: Value) -> Value:
    return b.select(b.icmp_signed(">", x, y), x, y)


def minimum(b: Builder, x: Value, y: Value) -> Value:
    return b.select(b.icmp_signed("<", x, y), x, y)


def count(b: Builder, flags: Sequence[Value]) -> Value:
    """How many lanes of all these flags are set, as one 64-bit number."""
    each = reduce(b.add, (b.zext(flag, vector_of(I32)) for flag in flags))
    return b.zext(across(b, each, b.add), I64)


def across(b: Builder, lanes_: Value, join: Callable) -> Value:
    """All lanes joined into one number."""
    width = LANES
    while width > 1:
        width //= 2
        low, high = (b.shuffle_vector(lanes_, lanes_, lanes(range(at, at + width))) for at in (0, width))
        lanes_ = join(low, high)
    return b.extract_element(lanes_, ir.Constant(I32, 0))


def magnitude(b: Builder, bits: Value, kind: ir.Type = I32) -> Value:
    """The bits of |x|, which order like |x|."""
    return b.and_(bits, splat((1 << (kind.width - 1)) - 1))


def order(b: Builder, bits: Value, kind: ir.Type = I32) -> Value:
    """Whole numbers that order like the floats with these bits, and are equal for -0.0 and +0.0."""
    sign = b.ashr(bits, splat(31))
    return b.sub(b.xor(magnitude(b, bits, kind), sign), sign)


def transposed(b: Builder, rows: list[Value]) -> list[Value]:
    """Of sixteen groups of m in a row, in m vectors: entry j of every group in vector j."""
    if len(rows) == 1:
        return rows
    ways = [lanes(range(first, 2 * LANES, 2)) for first in (0, 1)]
    halves = [[b.shuffle_vector(x, y, way) for x, y in zip(rows[::2], rows[1::2], strict=True)] for way in ways]
    even, odd = (transposed(b, half) for half in halves)
    return [vector for pair in zip(even, odd, strict=True) for vector in pair]


def restored(b: Builder, entries: list[Value]) -> list[Value]:
    """What `transposed` was given."""
    if len(entries) == 1:
        return entries
    even, odd = (restored(b, entries[first::2]) for first in (0, 1))
    both = [lane for i in range(LANES) for lane in (i, LANES + i)]
    ways = [lanes(both[:LANES]), lanes(both[LANES:])]
    return [b.shuffle_vector(x, y, way) for x, y in zip(even, odd, strict=True) for way in ways]


def ranked(b: Builder, entries: Sequence[Value], *ranks: int) -> list[Value]:
    """Of the entries of each lane those of some ranks, 0 being the largest."""
    wires = list(entries)
    for high, low, want_max, want_min in network(ranks, len(wires)):
        x, y = wires[high], wires[low]
        if want_max:
            wires[high] = maximum(b, x, y)
        if want_min:
            wires[low] = minimum(b, x, y)
    return [wires[rank] for rank in ranks]


def kept(b: Builder, keys: list[Value], n: int) -> list[Value]:
    """Flags of the n largest of every group of sixteen, and of equals the first; `keys` are m vectors in a row."""
    m = len(keys)
    entries = transposed(b, keys)
    (threshold,) = ranked(b, entries, n - 1)
    reach = []
    for i, key in enumerate(keys):
        own = lanes([(LANES * i + lane) // m for lane in range(LANES)])
        reach.append(b.icmp_signed(">=", key, b.shuffle_vector(threshold, threshold, own)))
    tied = b.icmp_signed("!=", count(b, reach), ir.Constant(I64, LANES * n))
    return chosen(b, tied, lambda: _first_of_equals(b, entries, threshold, n), reach)


def chosen(b: Builder, rare: Value, make: Callable[[], list[Value]], common: list[Value]) -> list[Value]:
    """`common`, but where `rare` what `make` builds; that is computed only then."""
    before = b.block
    with b.if_then(rare, likely=False):
        made = make()
        within = b.block
    joined = []
    for there, here in zip(made, common, strict=True):
        phi = b.phi(here.type)
        phi.add_incoming(there, within)
        phi.add_incoming(here, before)
        joined.append(phi)
    return joined


def _first_of_equals(b: Builder, entries: list[Value], threshold: Value, n: int) -> list[Value]:
    """Flags, in a row, of what is above the threshold, and of the first of what equals it, n to a group."""
    above = [b.icmp_signed(">", entry, threshold) for entry in entries]
    room = reduce(b.sub, (b.zext(flag, vector_of(I32)) for flag in above), splat(n))
    flags = []
    for entry, more in zip(entries, above, strict=True):
        equal = b.icmp_signed("==", entry, threshold)
        take = b.and_(equal, b.icmp_signed(">", room, splat(0)))
        room = b.sub(room, b.zext(take, vector_of(I32)))
        flags.append(b.zext(b.or_(more, take), vector_of(I32)))
    return [b.icmp_signed("!=", flag, splat(0)) for flag in restored(b, flags)]
