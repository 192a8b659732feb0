"""Masks of sixteen groups at a time, in LLVM vectors. LLVM compiles them to the vector instructions of any CPU.

A vector here is an LLVM value of sixteen 32-bit lanes. `transposed` puts entry j of sixteen groups into vector j; a
step of sorting is then one minimum and one maximum for all sixteen. Compilers do not vectorise plain loops this way.
Such loops are three to ten times slower.
"""

from collections.abc import Callable, Sequence
from functools import reduce

from llvmlite import ir
from llvmlite.ir import Constant, IntType, IRBuilder, Value, VectorType

from nxm_hf.solvers.comparator_network import network
from nxm_hf.solvers.cpu import LANES

I8, I16, I32, I64 = (IntType(bits) for bits in (8, 16, 32, 64))
FLOATS, DOUBLES = VectorType(ir.FloatType(), LANES), VectorType(ir.DoubleType(), LANES)
ZERO = Constant(I64, 0)


def vector_of(element: ir.Type) -> VectorType:
    """Return the type of sixteen lanes of `element`.

    Args:
        element: The type of a lane.
    """
    return VectorType(element, LANES)


def lanes(numbers: Sequence[int], element: ir.Type = I32) -> Constant:
    """Return a constant vector with these numbers in its lanes.

    Args:
        numbers: The numbers.
        element: The type of a lane.
    """
    return Constant(VectorType(element, len(numbers)), list(numbers))


def splat(number: int, element: ir.Type = I32) -> Constant:
    """Return a constant vector with one number in every lane.

    Args:
        number: The number.
        element: The type of a lane.
    """
    return lanes([number] * LANES, element)


def broadcast(b: IRBuilder, number: Value) -> Value:
    """Return a vector with a 64-bit number, which fits in 32 bits, in every lane.

    Args:
        b: The builder that the code is appended to.
        number: The number.
    """
    first = b.insert_element(Constant(vector_of(I32), ir.Undefined), b.trunc(number, I32), Constant(I32, 0))
    return b.shuffle_vector(first, first, splat(0))


def pointer(b: IRBuilder, address: Value, offset: Value | int, element: ir.Type) -> Value:
    """Return a pointer to the vector that begins `offset` entries after an address.

    Args:
        b: The builder that the code is appended to.
        address: The address.
        offset: How many entries after the address the vector begins.
        element: The type of an entry in memory.
    """
    offset = Constant(I64, offset) if isinstance(offset, int) else offset
    bytes_before = b.mul(offset, Constant(I64, element.width // 8))
    return b.inttoptr(b.add(address, bytes_before), vector_of(element).as_pointer())


def load(b: IRBuilder, address: Value, offset: Value | int, element: ir.Type = I32) -> Value:
    """Load sixteen entries from `offset` on, sign-extended to 32-bit lanes.

    Args:
        b: The builder that the code is appended to.
        address: The address of a tensor.
        offset: The number of the first entry.
        element: The type of an entry in memory.
    """
    vector = b.load(pointer(b, address, offset, element), align=element.width // 8)
    return vector if element is I32 else b.sext(vector, vector_of(I32))


def store(b: IRBuilder, vector: Value, address: Value, offset: Value | int, element: ir.Type = I32) -> None:
    """Store sixteen lanes as entries of type `element`, from `offset` on.

    Args:
        b: The builder that the code is appended to.
        vector: The lanes to write.
        address: The address of a tensor.
        offset: The number of the first entry.
        element: The type of an entry in memory.
    """
    narrow = vector if vector.type.element is element else b.trunc(vector, vector_of(element))
    b.store(narrow, pointer(b, address, offset, element), align=element.width // 8)


def maximum(b: IRBuilder, x: Value, y: Value) -> Value:
    """Return the larger of two vectors, lane by lane.

    Args:
        b: The builder that the code is appended to.
        x: A vector.
        y: A vector.
    """
    return b.select(b.icmp_signed(">", x, y), x, y)


def minimum(b: IRBuilder, x: Value, y: Value) -> Value:
    """Return the smaller of two vectors, lane by lane.

    Args:
        b: The builder that the code is appended to.
        x: A vector.
        y: A vector.
    """
    return b.select(b.icmp_signed("<", x, y), x, y)


def count(b: IRBuilder, flags: Sequence[Value]) -> Value:
    """Return how many lanes of all these vectors of flags are set, as a 64-bit number.

    Args:
        b: The builder that the code is appended to.
        flags: Vectors of flags.
    """
    in_lanes = reduce(b.add, (b.zext(flag, vector_of(I32)) for flag in flags))
    return b.zext(sum_of_lanes(b, in_lanes), I64)


def sum_of_lanes(b: IRBuilder, vector: Value) -> Value:
    """Return the sum of the lanes of a vector, in 32 bits.

    Args:
        b: The builder that the code is appended to.
        vector: The vector.
    """
    width = LANES
    while width > 1:
        width //= 2
        low, high = (b.shuffle_vector(vector, vector, lanes(range(at, at + width))) for at in (0, width))
        vector = b.add(low, high)
    return b.extract_element(vector, Constant(I32, 0))


def packed_flags(b: IRBuilder, flags: Sequence[Value]) -> Value:
    """Return all lanes of up to four vectors of flags as the bits of a 64-bit number, the first in the lowest.

    Args:
        b: The builder that the code is appended to.
        flags: Vectors of flags.
    """
    parts = [b.zext(b.bitcast(flag, IntType(LANES)), I64) for flag in flags]
    return reduce(b.or_, (b.shl(part, Constant(I64, LANES * i)) for i, part in enumerate(parts)))


def any_set(b: IRBuilder, flags: Value) -> Value:
    """Return whether a lane of flags is set.

    Args:
        b: The builder that the code is appended to.
        flags: A vector of flags.
    """
    return b.icmp_signed("!=", b.bitcast(flags, IntType(LANES)), Constant(IntType(LANES), 0))


def magnitude(b: IRBuilder, bits: Value, element: ir.Type = I32) -> Value:
    """Return the bits of |x|, which are ordered like |x|.

    Args:
        b: The builder that the code is appended to.
        bits: The bits of floats.
        element: The integer type of the width of those floats.
    """
    return b.and_(bits, splat((1 << (element.width - 1)) - 1))


def ordered(b: IRBuilder, bits: Value, element: ir.Type = I32) -> Value:
    """Return integers that are ordered like the floats with these bits, and are equal for -0.0 and +0.0.

    `unstructured.ordered` does the same in NumPy, and `gpu.kernels` in Triton. No function compiles in all three.

    Args:
        b: The builder that the code is appended to.
        bits: The bits of floats.
        element: The integer type of the width of those floats.
    """
    sign = b.ashr(bits, splat(31))
    return b.sub(b.xor(magnitude(b, bits, element), sign), sign)


def multiply_add(b: IRBuilder, x: Value, y: Value, z: Value) -> Value:
    """Return x * y + z of vectors of floats, rounded once, as torch adds a tensor times a number.

    Args:
        b: The builder that the code is appended to.
        x: A vector of floats.
        y: A vector of floats.
        z: A vector of floats.
    """
    name, signature = f"llvm.fma.v{LANES}f32", ir.FunctionType(FLOATS, [FLOATS] * 3)
    function = b.module.globals.get(name) or ir.Function(b.module, signature, name)
    return b.call(function, [x, y, z])


def transposed(b: IRBuilder, rows: list[Value]) -> list[Value]:
    """Return m vectors, entry j of every group in vector j, from sixteen groups of m in a row.

    Args:
        b: The builder that the code is appended to.
        rows: The m vectors of sixteen groups.
    """
    if len(rows) == 1:
        return rows
    even_and_odd = [lanes(range(first, 2 * LANES, 2)) for first in (0, 1)]
    halves = [
        [b.shuffle_vector(x, y, lane) for x, y in zip(rows[::2], rows[1::2], strict=True)] for lane in even_and_odd
    ]
    even, odd = (transposed(b, half) for half in halves)
    return [vector for pair in zip(even, odd, strict=True) for vector in pair]


def restored(b: IRBuilder, entries: list[Value]) -> list[Value]:
    """Return the vectors of groups, from the result of `transposed`.

    Args:
        b: The builder that the code is appended to.
        entries: The m vectors of entries.
    """
    if len(entries) == 1:
        return entries
    even, odd = (restored(b, entries[first::2]) for first in (0, 1))
    interleaved = [lane for i in range(LANES) for lane in (i, LANES + i)]
    halves = [lanes(interleaved[:LANES]), lanes(interleaved[LANES:])]
    return [b.shuffle_vector(x, y, half) for x, y in zip(even, odd, strict=True) for half in halves]


def ranked(b: IRBuilder, entries: Sequence[Value], *ranks: int) -> list[Value]:
    """Return the entries of some ranks, in each lane; rank 0 is the largest.

    Args:
        b: The builder that the code is appended to.
        entries: A vector for each entry.
        *ranks: The wanted ranks.
    """
    wires = list(entries)
    for high, low, want_max, want_min in network(ranks, len(wires)):
        x, y = wires[high], wires[low]
        if want_max:
            wires[high] = maximum(b, x, y)
        if want_min:
            wires[low] = minimum(b, x, y)
    return [wires[rank] for rank in ranks]


def kept_flags(b: IRBuilder, keys: list[Value], n: int) -> list[Value]:
    """Return flags of the n largest keys of every group. Of equal keys the first are flagged.

    `keys` are sixteen groups in a row, in m vectors, and so are the flags.

    Args:
        b: The builder that the code is appended to.
        keys: The keys to rank.
        n: How many to keep of each group.
    """
    m = len(keys)
    entries = transposed(b, keys)
    (threshold,) = ranked(b, entries, n - 1)
    reach = []
    for i, key in enumerate(keys):
        own_group = lanes([(LANES * i + lane) // m for lane in range(LANES)])
        reach.append(b.icmp_signed(">=", key, b.shuffle_vector(threshold, threshold, own_group)))
    tied = b.icmp_signed("!=", count(b, reach), Constant(I64, LANES * n))
    return _select_rare(b, tied, lambda: _first_of_equals(b, entries, threshold, n), reach)


def _select_rare(b: IRBuilder, rare: Value, make: Callable[[], list[Value]], common: list[Value]) -> list[Value]:
    """Return `common`, or the result of `make` if `rare` is set. It is computed only in that case."""
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


def _first_of_equals(b: IRBuilder, entries: list[Value], threshold: Value, n: int) -> list[Value]:
    """Return flags, in a row, of the entries above the threshold and the first of those equal to it, n to a group."""
    above = [b.icmp_signed(">", entry, threshold) for entry in entries]
    room = reduce(b.sub, (b.zext(flag, vector_of(I32)) for flag in above), splat(n))
    flags = []
    for entry, more in zip(entries, above, strict=True):
        equal = b.icmp_signed("==", entry, threshold)
        take = b.and_(equal, b.icmp_signed(">", room, splat(0)))
        room = b.sub(room, b.zext(take, vector_of(I32)))
        flags.append(b.zext(b.or_(more, take), vector_of(I32)))
    return [b.icmp_signed("!=", flag, splat(0)) for flag in restored(b, flags)]
