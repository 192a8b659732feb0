"""What is done to sixteen entries of a row at a time, to find its highest scores."""

from llvmlite import ir

from nxm_hf.solvers.fast.vectors import (
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

FLAGS = vector_of(ir.IntType(1))


def collect(b: Builder, scores: Value, at: Value, room: Value, low: Value, high: Value) -> Value:
    """Write what lies between, ends included, to `room`; how many those are and, times 2**32, how many are above."""
    keys = order(b, load(b, scores, at))
    low, high = in_every_lane(b, low), in_every_lane(b, high)
    above = b.icmp_signed(">", keys, high)
    between = b.and_(b.icmp_signed(">=", keys, low), b.icmp_signed("<=", keys, high))
    some = b.icmp_signed("!=", b.bitcast(between, ir.IntType(LANES)), ir.Constant(ir.IntType(LANES), 0))
    with b.if_then(some):
        target = b.inttoptr(room, I32.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [keys.type, target.type, FLAGS])
        b.call(b.module.declare_intrinsic("llvm.masked.compressstore.v16i32", (), kind), [keys, target, between])
    return b.or_(b.shl(count(b, [above]), ir.Constant(I64, 32)), count(b, [between]))


def flag(b: Builder, scores: Value, at: Value, flags: Value, threshold: Value) -> Value:
    """Flag what reaches the threshold; how many."""
    reach = b.icmp_signed(">=", order(b, load(b, scores, at)), in_every_lane(b, threshold))
    b.store(b.zext(reach, vector_of(I8)), place(b, flags, at, I8), align=1)
    return count(b, [reach])
