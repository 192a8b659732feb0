"""Steps on sixteen entries of a row at a time, as LLVM code, to find the highest scores of the row."""

import torch
from llvmlite.ir import Constant, IRBuilder, Value

from nxm_hf.solvers.base import INFINITY_BITS
from nxm_hf.solvers.cpu.llvm_vectors import (
    I8,
    I32,
    I64,
    LANES,
    any_set,
    broadcast,
    load,
    ordered,
    packed_flags,
    pointer,
    splat,
    vector_of,
)

INFINITE = INFINITY_BITS[torch.float32]


def collect(b: IRBuilder, scores: Value, at: Value, room: Value, low: Value, high: Value, readable: Value) -> Value:
    """Write the keys between `low` and `high`, ends included, to `room`.

    Return their number, plus 2**32 times the number of keys above `high`, plus 2**16 times the number of NaN.

    Args:
        b: The builder that the code is appended to.
        scores: The address of the row.
        at: The number of the first entry.
        room: The address to write keys to.
        low: The lowest key to write.
        high: The highest key to write.
        readable: The bits of a score that are read; all but the sign for magnitudes.
    """
    keys = ordered(b, b.and_(load(b, scores, at), broadcast(b, readable)))
    low, high = broadcast(b, low), broadcast(b, high)
    above = b.icmp_signed(">", keys, high)
    between = b.and_(b.icmp_signed(">=", keys, low), b.icmp_signed("<=", keys, high))
    with b.if_then(any_set(b, between)):
        # Keys are written one by one. Each overwrites the one before, unless that is between the ends. An instruction
        # that packs a vector while storing it exists, but takes a hundred cycles on AMD CPUs.
        for lane in range(LANES):
            index = Constant(I32, lane)
            b.store(b.extract_element(keys, index), b.inttoptr(room, I32.as_pointer()), align=4)
            room = b.add(room, b.shl(b.zext(b.extract_element(between, index), I64), Constant(I64, 2)))
    nan = b.shl(flag_count(b, b.icmp_signed(">", keys, splat(INFINITE))), Constant(I64, 16))
    return b.or_(b.or_(b.shl(flag_count(b, above), Constant(I64, 32)), nan), flag_count(b, between))


def flag(b: IRBuilder, scores: Value, at: Value, flags: Value, threshold: Value, readable: Value) -> Value:
    """Flag the keys that reach the threshold. Return how many there are.

    Args:
        b: The builder that the code is appended to.
        scores: The address of the row.
        at: The number of the first entry.
        flags: The address of the flags.
        threshold: The lowest key to flag.
        readable: The bits of a score that are read; all but the sign for magnitudes.
    """
    keys = ordered(b, b.and_(load(b, scores, at), broadcast(b, readable)))
    reach = b.icmp_signed(">=", keys, broadcast(b, threshold))
    b.store(b.zext(reach, vector_of(I8)), pointer(b, flags, at, I8), align=1)
    return flag_count(b, reach)


def flag_count(b: IRBuilder, flags: Value) -> Value:
    """Return how many lanes of flags are set, as a 64-bit number.

    Args:
        b: The builder that the code is appended to.
        flags: A vector of flags.
    """
    return b.ctpop(packed_flags(b, [flags]))
