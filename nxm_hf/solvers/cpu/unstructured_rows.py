"""What is done to sixteen entries of a row at a time, to find its highest scores."""

from llvmlite import ir

from nxm_hf.solvers.cpu.llvm_vectors import (
    I8,
    I32,
    I64,
    LANES,
    Builder,
    Value,
    count,
    in_every_lane,
    load,
    order,
    place,
    vector_of,
)


def collect(b: Builder, scores: Value, at: Value, room: Value, low: Value, high: Value) -> Value:
    """Write what lies between, ends included, to `room`; how many those are and, times 2**32, how many are above."""
    keys = order(b, load(b, scores, at))
    low, high = in_every_lane(b, low), in_every_lane(b, high)
    above = b.icmp_signed(">", keys, high)
    between = b.and_(b.icmp_signed(">=", keys, low), b.icmp_signed("<=", keys, high))
    some = b.icmp_signed("!=", b.bitcast(between, ir.IntType(LANES)), ir.Constant(ir.IntType(LANES), 0))
    with b.if_then(some):
        # One by one, each over the one before unless that lies between: an instruction that packs a vector on its way
        # to memory exists, and takes CPUs of AMD a hundred cycles.
        for lane in range(LANES):
            which = ir.Constant(I32, lane)
            b.store(b.extract_element(keys, which), b.inttoptr(room, I32.as_pointer()), align=4)
            room = b.add(room, b.shl(b.zext(b.extract_element(between, which), I64), ir.Constant(I64, 2)))
    return b.or_(b.shl(count(b, [above]), ir.Constant(I64, 32)), count(b, [between]))


def flag(b: Builder, scores: Value, at: Value, flags: Value, threshold: Value) -> Value:
    """Flag what reaches the threshold; how many."""
    reach = b.icmp_signed(">=", order(b, load(b, scores, at)), in_every_lane(b, threshold))
    b.store(b.zext(reach, vector_of(I8)), place(b, flags, at, I8), align=1)
    return count(b, [reach])
