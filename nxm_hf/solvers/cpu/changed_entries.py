"""Comparison of an array with its old copy, and the way back, for sixteen entries at a time, as LLVM code.

AVX-512 has one instruction that gathers the chosen lanes of a vector, and one that spreads them. Without these, both
take longer than NumPy does.
"""

from llvmlite.ir import Constant, IntType, IRBuilder, Type, Value

from nxm_hf.solvers.cpu.adamw_entries import compress, expand, flags_at
from nxm_hf.solvers.cpu.llvm_vectors import I8, I16, I64, load, magnitude, splat, store


def compare(b: IRBuilder, bits: int, at: Value, old: Value, new: Value, flags: Value, room: Value) -> Value:
    """Write a flag for each of sixteen entries that differs, and the old bits of those side by side.

    Up to sixteen entries are written. Those behind the gathered ones mean nothing.

    Args:
        b: The builder that the code is appended to.
        bits: Width of an entry.
        at: The number of the first entry, a multiple of sixteen.
        old: The address of the old entries.
        new: The address of the new ones.
        flags: The address of the flags, one bit per entry.
        room: The address to write old bits to.

    Returns:
        How many differ.
    """
    entry = IntType(bits)
    return _hold(b, entry, at, load(b, old, at, entry), load(b, new, at, entry), flags, room)


def keep(
    b: IRBuilder, bits: int, at: Value, source: Value, mask: Value, out: Value, flags: Value, room: Value
) -> Value:
    """Write the kept ones of sixteen entries, and +0.0 elsewhere and for -0.0. Hold what that overwrites.

    Args:
        b: The builder that the code is appended to.
        bits: Width of an entry.
        at: The number of the first entry, a multiple of sixteen.
        source: The address of the entries of which some are kept.
        mask: The address of the mask.
        out: The address to write to; it may be the source.
        flags: As in `compare`.
        room: As in `compare`.

    Returns:
        How many entries got other bits.
    """
    entry = IntType(bits)
    number, before = load(b, source, at, entry), load(b, out, at, entry)
    kept = b.icmp_signed("!=", load(b, mask, at, I8), splat(0))
    kept = b.and_(kept, b.icmp_signed("!=", magnitude(b, number, entry), splat(0)))
    after = b.select(kept, number, splat(0))
    store(b, after, out, at, entry)
    return _hold(b, entry, at, before, after, flags, room)


def _hold(b: IRBuilder, entry: Type, at: Value, before: Value, after: Value, flags: Value, room: Value) -> Value:
    differs = b.icmp_signed("!=", before, after)
    word = b.bitcast(differs, I16)
    b.store(word, b.inttoptr(b.add(flags, b.lshr(at, Constant(I64, 3))), I16.as_pointer()), align=1)
    store(b, compress(b, before, differs), room, 0, entry)
    return b.zext(b.ctpop(word), I64)


def restore(b: IRBuilder, bits: int, at: Value, entries: Value, flags: Value, room: Value) -> Value:
    """Write old bits over the flagged ones of sixteen entries.

    Args:
        b: The builder that the code is appended to.
        bits: Width of an entry.
        at: The number of the first entry, a multiple of sixteen.
        entries: The address of the entries.
        flags: The address of the flags, one bit per entry.
        room: The address of the old bits of these entries. Sixteen are read, however few are flagged.

    Returns:
        How many are flagged.
    """
    entry = IntType(bits)
    word, flagged = flags_at(b, flags, at)
    store(b, expand(b, load(b, room, 0, entry), load(b, entries, at, entry), flagged), entries, at, entry)
    return b.zext(b.ctpop(word), I64)
