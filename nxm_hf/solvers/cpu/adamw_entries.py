"""A step of AdamW on sixteen entries of a masked weight, as LLVM code: the arithmetic of torch's fused AdamW.

Moments are dense, or those of kept entries alone. Then weight and gradient are gathered before the step, and the weight
is spread after it. AVX-512 has an instruction for each; without it, both take longer than the step.
"""

from llvmlite import ir
from llvmlite.ir import Constant, IntType, IRBuilder, Value

from nxm_hf.solvers.cpu.llvm_vectors import (
    FLOATS,
    I8,
    I16,
    I32,
    I64,
    LANES,
    ZERO,
    broadcast,
    load,
    magnitude,
    multiply_add,
    splat,
    store,
    vector_of,
)

# Whether torch was compiled with a fused multiply-add, in the first moment and in the second. It depends on the CPU
# and on the compiler, and changes the last bit. x86-64 with AVX2 or AVX-512 has the first.
ROUNDINGS = ((True, True), (True, False), (False, False))
_ZEROS = Constant(FLOATS, [0.0] * LANES)


def adamw_entries(
    b: IRBuilder,
    rounding: int,
    pulls: int,
    at: Value,
    weight: Value,
    gradient: Value,
    mask: Value,
    first: Value,
    second: Value,
    numbers: Value,
) -> Value:
    """Update both moments and the weight in place.

    A masked step masks the gradient, and writes +0.0 where the mask prunes. A step that pulls adds the weight, times a
    factor, to its gradient where the mask prunes. The weight stays dense.

    Args:
        b: The builder that the code is appended to.
        rounding: The index in `ROUNDINGS` of torch's rounding.
        pulls: Whether the step pulls, as 0 or 1.
        at: The number of the first entry.
        weight: The address of the fp32 weight.
        gradient: The address of its gradient, which is only read.
        mask: The address of the mask.
        first: The address of the first moment.
        second: The address of the second moment.
        numbers: The address of the fp32 numbers that `masked_adamw.AdamWStep.numbers` returns.
    """
    kept = b.icmp_signed("!=", load(b, mask, at, I8), splat(0))
    w, g = (load(b, each, at) for each in (weight, gradient))
    if pulls:
        pruned = b.fmul(_floats(b, w), b.uitofp(b.not_(kept), FLOATS))
        g = b.bitcast(multiply_add(b, pruned, _number(b, numbers, 8), _floats(b, g)), vector_of(I32))
    else:
        g = b.select(kept, g, splat(0))  # a pruned infinity becomes 0, not NaN
    bits = _step(b, rounding, at, w, g, first, second, numbers)
    if not pulls:
        bits = b.select(kept, _positive_zeros(b, bits), splat(0))
    store(b, bits, weight, at)
    return ZERO


def adamw_of_kept(
    b: IRBuilder,
    rounding: int,
    at: Value,
    weight: Value,
    gradient: Value,
    first: Value,
    second: Value,
    numbers: Value,
) -> Value:
    """Take a masked step with entries that are all kept.

    Args:
        b: The builder that the code is appended to.
        rounding: The index in `ROUNDINGS` of torch's rounding.
        at: The number of the first entry.
        weight: The address of the fp32 entries.
        gradient: The address of their gradient, which is only read.
        first: The address of the first moment.
        second: The address of the second moment.
        numbers: The address of the fp32 numbers that `masked_adamw.AdamWStep.numbers` returns.
    """
    w, g = (load(b, each, at) for each in (weight, gradient))
    store(b, _positive_zeros(b, _step(b, rounding, at, w, g, first, second, numbers)), weight, at)
    return ZERO


def gather_kept(
    b: IRBuilder, at: Value, weight: Value, gradient: Value, bits: Value, weights: Value, gradients: Value
) -> Value:
    """Write the kept ones of sixteen entries side by side, then zeros to sixteen entries. Return how many are kept.

    Args:
        b: The builder that the code is appended to.
        at: The number of the first entry, a multiple of sixteen.
        weight: The address of the fp32 weight.
        gradient: The address of its gradient.
        bits: The address of the mask, one bit per entry.
        weights: The address to write entries of the weight to.
        gradients: The address to write entries of the gradient to.
    """
    word, kept = flags_at(b, bits, at)
    for source, room in ((weight, weights), (gradient, gradients)):
        store(b, compress(b, load(b, source, at), kept), room, 0)
    return b.zext(b.ctpop(word), I64)


def spread_kept(b: IRBuilder, at: Value, weight: Value, bits: Value, weights: Value) -> Value:
    """Write packed entries to the kept ones of sixteen, and +0.0 to the others. Return how many are kept.

    Args:
        b: The builder that the code is appended to.
        at: The number of the first entry, a multiple of sixteen.
        weight: The address of the fp32 weight.
        bits: The address of the mask, one bit per entry.
        weights: The address of the kept entries.
    """
    word, kept = flags_at(b, bits, at)
    store(b, expand(b, load(b, weights, 0), splat(0), kept), weight, at)
    return b.zext(b.ctpop(word), I64)


def compress(b: IRBuilder, vector: Value, flags: Value) -> Value:
    """Return the flagged lanes of a vector side by side, and zeros behind them. It needs AVX-512.

    Args:
        b: The builder that the code is appended to.
        vector: Sixteen lanes of 32 bits.
        flags: A flag for each lane.
    """
    packed = _call(b, "llvm.x86.avx512.mask.compress", _floats(b, vector), _ZEROS, flags)
    return b.bitcast(packed, vector_of(I32))


def expand(b: IRBuilder, packed: Value, others: Value, flags: Value) -> Value:
    """Return a vector with packed lanes at its flagged ones, the first at the lowest. It needs AVX-512.

    Args:
        b: The builder that the code is appended to.
        packed: The lanes that `compress` has put side by side.
        others: The vector from which the other lanes come.
        flags: A flag for each lane.
    """
    spread = _call(b, "llvm.x86.avx512.mask.expand", _floats(b, packed), _floats(b, others), flags)
    return b.bitcast(spread, vector_of(I32))


def flags_at(b: IRBuilder, bits: Value, at: Value) -> tuple[Value, Value]:
    """Return the bits of sixteen entries as a number, and as a vector of flags.

    Args:
        b: The builder that the code is appended to.
        bits: The address of one bit per entry.
        at: The number of the first entry, a multiple of sixteen.
    """
    address = b.add(bits, b.lshr(at, Constant(I64, 3)))
    word = b.load(b.inttoptr(address, I16.as_pointer()), align=1)
    return word, b.bitcast(word, vector_of(IntType(1)))


def _step(
    b: IRBuilder,
    rounding: int,
    at: Value,
    weight: Value,
    gradient: Value,
    first: Value,
    second: Value,
    numbers: Value,
) -> Value:
    """Update both moments in place. Return the bits of the new weights."""
    sign, decay, rate, beta, rest, correction, eps, step = (_number(b, numbers, i) for i in range(8))
    first_is_fused, second_is_fused = ROUNDINGS[rounding]
    m, v = (_floats(b, load(b, each, at)) for each in (first, second))
    g = b.fmul(_floats(b, gradient), sign)
    change = b.fsub(g, m)
    m = multiply_add(b, rate, change, m) if first_is_fused else b.fadd(b.fmul(rate, change), m)
    v, square = b.fmul(v, beta), b.fmul(rest, g)
    v = multiply_add(b, square, g, v) if second_is_fused else b.fadd(v, b.fmul(square, g))
    divisor = b.fadd(b.fdiv(_square_root(b, v), correction), eps)
    w = b.fadd(b.fmul(_floats(b, weight), decay), b.fdiv(b.fmul(step, m), divisor))
    store(b, b.bitcast(m, vector_of(I32)), first, at)
    store(b, b.bitcast(v, vector_of(I32)), second, at)
    return b.bitcast(w, vector_of(I32))


def _positive_zeros(b: IRBuilder, bits: Value) -> Value:
    return b.select(b.icmp_signed("!=", magnitude(b, bits), splat(0)), bits, splat(0))  # -0.0 becomes +0.0


def _floats(b: IRBuilder, bits: Value) -> Value:
    return b.bitcast(bits, FLOATS)


def _number(b: IRBuilder, numbers: Value, index: int) -> Value:
    """Return a vector with one of the numbers in every lane."""
    address = b.add(numbers, Constant(I64, 4 * index))
    bits = b.load(b.inttoptr(address, I32.as_pointer()), align=4)
    return _floats(b, broadcast(b, b.zext(bits, I64)))


def _square_root(b: IRBuilder, x: Value) -> Value:
    return _call(b, "llvm.sqrt", x)


def _call(b: IRBuilder, intrinsic: str, *vectors: Value) -> Value:
    """Call a function of LLVM that takes sixteen floats, and returns as many."""
    name, signature = f"{intrinsic}.v{LANES}f32", ir.FunctionType(FLOATS, [each.type for each in vectors])
    function = b.module.globals.get(name) or ir.Function(b.module, signature, name)
    return b.call(function, vectors)
