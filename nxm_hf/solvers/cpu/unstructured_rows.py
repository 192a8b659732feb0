"""Steps on sixteen entries of a row at a time, as LLVM code, to find the highest scores of the row."""

from llvmlite.ir import Constant, IRBuilder, Value

from nxm_hf.solvers.cpu.llvm_vectors import (
    I8,
    I32,
    I64,
    LANES,
    any_set,
    broadcast,
    count,
    load,
    ordered,
    pointer,
    vector_of,
)


def collect(b: IRBuilder, scores: Value, at: Value, room: Value, low: Value, high: Value) -> Value:
    """Write the keys between `low` and `high`, ends included, to `room`.

    Return how many those are, plus 2**32 times how many keys are above.

    Args:
        b: The builder that the code is appended to.
        scores: The address of the row.
        at: The number of the first entry.
        room: The address to write keys to.
        low: The lowest key to write.
        high: The highest key to write.
    """
    keys = ordered(b, load(b, scores, at))
    low, high = broadcast(b, low), broadcast(b, high)
    above = b.icmp_signed(">", keys, high)
    between = b.and_(b.icmp_signed(">=", keys, low), b.icmp_signed("<=", keys, high))
    with b.if_then(any_set(b, between)):
        # One by one, each over the one before unless that lies between: an instruction that packs a vector on its way
        # to memory exists, but takes AMD CPUs a hundred cycles.
        for lane in range(LANES):
            index = Constant(I32, lane)
            b.store(b.extract_element(keys, index), b.inttoptr(room, I32.as_pointer()), align=4)
            room = b.add(room, b.shl(b.zext(b.extract_element(between, index), I64), Constant(I64, 2)))
    return b.or_(b.shl(count(b, [above]), Constant(I64, 32)), count(b, [between]))


def flag(b: IRBuilder, scores: Value, at: Value, flags: Value, threshold: Value) -> Value:
    """Flag the keys that reach the threshold. Return how many there are.

    Args:
        b: The builder that the code is appended to.
        scores: The address of the row.
        at: The number of the first entry.
        flags: The address of the flags.
        threshold: The lowest key to flag.
    """
    reach = b.icmp_signed(">=", ordered(b, load(b, scores, at)), broadcast(b, threshold))
    b.store(b.zext(reach, vector_of(I8)), pointer(b, flags, at, I8), align=1)
    return count(b, [reach])
