"""A step of AdamW on sixteen entries of a masked weight, as LLVM code: the arithmetic of torch's fused AdamW."""

from llvmlite import ir
from llvmlite.ir import Constant, IRBuilder, Value

from nxm_hf.solvers.cpu.llvm_vectors import (
    FLOATS,
    I8,
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


def adamw_entries(
    b: IRBuilder,
    rounding: int,
    at: Value,
    weight: Value,
    gradient: Value,
    mask: Value,
    first: Value,
    second: Value,
    numbers: Value,
) -> Value:
    """Mask the gradient, update both moments and the weight in place, and write +0.0 where the mask prunes.

    Args:
        b: The builder that the code is appended to.
        rounding: The index in `ROUNDINGS` of torch's rounding.
        at: The number of the first entry.
        weight: The address of the fp32 weight.
        gradient: The address of its gradient, which is only read.
        mask: The address of the mask.
        first: The address of the first moment.
        second: The address of the second moment.
        numbers: The address of the fp32 numbers that `masked_adamw.AdamWStep.numbers` returns.
    """
    sign, decay, rate, beta, rest, correction, eps, step = (_number(b, numbers, i) for i in range(8))
    first_is_fused, second_is_fused = ROUNDINGS[rounding]
    kept = b.icmp_signed("!=", load(b, mask, at, I8), splat(0))
    w, g, m, v = (load(b, each, at) for each in (weight, gradient, first, second))
    g = b.fmul(_floats(b, b.select(kept, g, splat(0))), sign)  # a pruned infinity becomes 0, not NaN
    m, v = _floats(b, m), _floats(b, v)
    change = b.fsub(g, m)
    m = multiply_add(b, rate, change, m) if first_is_fused else b.fadd(b.fmul(rate, change), m)
    v, square = b.fmul(v, beta), b.fmul(rest, g)
    v = multiply_add(b, square, g, v) if second_is_fused else b.fadd(v, b.fmul(square, g))
    divisor = b.fadd(b.fdiv(_square_root(b, v), correction), eps)
    w = b.fadd(b.fmul(_floats(b, w), decay), b.fdiv(b.fmul(step, m), divisor))
    bits = b.bitcast(w, vector_of(I32))
    nonzero = b.and_(kept, b.icmp_signed("!=", magnitude(b, bits), splat(0)))  # -0.0 becomes +0.0
    store(b, b.select(nonzero, bits, splat(0)), weight, at)
    store(b, b.bitcast(m, vector_of(I32)), first, at)
    store(b, b.bitcast(v, vector_of(I32)), second, at)
    return ZERO


def _floats(b: IRBuilder, bits: Value) -> Value:
    return b.bitcast(bits, FLOATS)


def _number(b: IRBuilder, numbers: Value, index: int) -> Value:
    """Return a vector with one of the numbers in every lane."""
    address = b.add(numbers, Constant(I64, 4 * index))
    bits = b.load(b.inttoptr(address, I32.as_pointer()), align=4)
    return _floats(b, broadcast(b, b.zext(bits, I64)))


def _square_root(b: IRBuilder, x: Value) -> Value:
    name, signature = f"llvm.sqrt.v{LANES}f32", ir.FunctionType(FLOATS, [FLOATS])
    function = b.module.globals.get(name) or ir.Function(b.module, signature, name)
    return b.call(function, [x])
