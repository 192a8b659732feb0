"""Products with packed weights, as LLVM code: sixteen rows for a few tokens, or one row for many.

All addresses are 64-bit integers. Weights have the layout of `nxm_hf.inference.layout`.
"""

import platform
from functools import cache
from typing import Any

import numba
from llvmlite import binding, ir
from llvmlite.ir import Constant, IRBuilder, Value, VectorType
from numba.core import cgutils

from nxm_hf.inference.layout import INPUTS, ROWS, WORD, index_bits
from nxm_hf.solvers.cpu.llvm_vectors import FLOATS, I8, I16, I32, I64, LANES, ZERO, lanes, load, splat, transposed

X86 = ("x86_64", "amd64", "i686", "i386")  # as `platform.machine` names it
F32 = ir.FloatType()
BYTES = 4 * LANES  # of a vector
LINE = 64  # bytes of a cache line
AHEAD = 1024  # bytes from the values that are used to those that are fetched: weights come from memory
EXPONENT = 0x7F800000  # all set in infinities and NaN


@cache
def host_features() -> frozenset[str]:
    """Return the names that LLVM gives to the vector instructions it may use here.

    These are those of this CPU, unless the environment variables of numba say otherwise. An instruction that LLVM may
    not use would end the process.
    """
    settings: Any = numba.config  # its names are made at run time
    if not settings.ENABLE_AVX:
        return frozenset()
    if settings.CPU_FEATURES is not None:
        return frozenset(name[1:] for name in settings.CPU_FEATURES.split(",") if name.startswith("+"))
    return frozenset(name for name, there in binding.get_host_cpu_features().items() if there)


def few_tokens(
    b: IRBuilder, n: int, m: int, value_bits: int, tokens: int,
    x: Value, x_stride: Value, values: Value, indices: Value, bias: Value, y: Value, y_stride: Value, chunks: Value,
) -> Value:  # fmt: skip
    """Multiply sixteen rows of a weight with a few tokens, and write sixteen outputs of each.

    Each group of a token is loaded once, and the entries that sixteen rows keep of it are selected from registers.

    Args:
        b: The builder that the code is appended to.
        n: Kept entries of a group.
        m: Entries of a group.
        value_bits: 32 for fp32 values, 16 for bf16.
        tokens: How many tokens, a constant.
        x: The address of the first token.
        x_stride: Bytes from one token to the next.
        values: The address of the values of these rows.
        indices: The address of their indices.
        bias: The address of their bias.
        y: The address of the first output of the first token.
        y_stride: Bytes from the outputs of one token to those of the next.
        chunks: How many chunks of `INPUTS` a row has.
    """
    kept, words, bits = _of_chunk(n, m)
    chains = max(1, 4 // tokens)  # sums that do not wait for each other
    zero = Constant(FLOATS, [0.0] * LANES)
    sums = [[cgutils.alloca_once_value(b, zero) for _ in range(chains)] for _ in range(tokens)]
    x_rows = [b.add(x, b.mul(x_stride, Constant(I64, token))) for token in range(tokens)]
    with cgutils.for_range(b, chunks) as loop:
        value_at = b.add(values, b.mul(loop.index, Constant(I64, kept * LANES * value_bits // 8)))
        index_at = b.add(indices, b.mul(loop.index, Constant(I64, words * BYTES)))
        x_at = b.mul(loop.index, Constant(I64, 4 * INPUTS))
        totals = [[b.load(chain) for chain in token] for token in sums]
        for group in range(INPUTS // m):
            weights, places = [], []
            for k in range(group * n, group * n + n):
                word, shift = divmod(k * bits, WORD)
                weights.append(_load_values(b, value_at, k, value_bits))
                places.append(b.lshr(load(b, index_at, LANES * word), splat(shift)))
            for token, x_row in enumerate(x_rows):
                entries = _load_group(b, b.add(x_row, x_at), group, m)
                for j, (weight, place) in enumerate(zip(weights, places, strict=True)):
                    chain = (group * n + j) % chains
                    picked = _select(b, entries, place, m)
                    totals[token][chain] = _fused(b, picked, weight, totals[token][chain])
        for chain, total in zip((c for token in sums for c in token), (t for row in totals for t in row), strict=True):
            b.store(total, chain)
    first = b.bitcast(load(b, bias, 0), FLOATS)
    for token, partial in enumerate(sums):
        total = first
        for chain in partial:
            total = b.fadd(total, b.load(chain))
        b.store(total, b.inttoptr(b.add(y, b.mul(y_stride, Constant(I64, token))), FLOATS.as_pointer()), align=4)
    return ZERO


def one_row(
    b: IRBuilder, n: int, m: int, value_bits: int, vectors: int,
    x: Value, values: Value, indices: Value, y: Value, ahead: Value,
) -> Value:  # fmt: skip
    """Add the products of one row and one chunk of inputs to the outputs of many tokens.

    Each of sixteen rows fetches a sixteenth of the values that come next.

    Args:
        b: The builder that the code is appended to.
        n: Kept entries of a group.
        m: Entries of a group.
        value_bits: 32 for fp32 values, 16 for bf16.
        vectors: How many vectors of sixteen tokens, a constant.
        x: The address of the inputs, [inputs, tokens].
        values: The address of the row's first value.
        indices: The address of the row's first word of indices.
        y: The address of the row's outputs, one for each token.
        ahead: The address of values to fetch.
    """
    kept, _, bits = _of_chunk(n, m)
    for line in range(0, kept * value_bits // 8, LINE):
        _prefetch(b, _pointer(b, ahead, line, I8))
    step = (vectors * BYTES).bit_length() - 1  # of the bytes of one input, which are a power of two
    totals = [_load_floats(b, y, BYTES * i) for i in range(vectors)]
    word = None
    for k in range(kept):
        number, shift = divmod(k * bits, WORD)
        if shift == 0:
            loaded = b.load(_pointer(b, indices, BYTES * number, I32), align=4)
            word = b.zext(loaded, I64)
        assert word is not None
        moved = b.shl(word, Constant(I64, step - shift)) if shift < step else b.lshr(word, Constant(I64, shift - step))
        offset = b.and_(moved, Constant(I64, (m - 1) << step))
        column = b.add(b.add(x, offset), Constant(I64, (k // n * m) << step))
        weight = _broadcast(b, _load_value(b, values, k, value_bits))
        totals = [_fused(b, _load_floats(b, column, BYTES * i), weight, total) for i, total in enumerate(totals)]
    for i, total in enumerate(totals):
        b.store(total, _pointer(b, y, BYTES * i, FLOATS), align=4)
    return ZERO


def turn_inputs(
    b: IRBuilder, x: Value, x_stride: Value, count: Value, zeros: Value, out: Value, out_stride: Value
) -> Value:
    """Transpose sixteen inputs of up to sixteen tokens. Return whether one of them is infinite or NaN.

    Args:
        b: The builder that the code is appended to.
        x: The address of the first input of the first token.
        x_stride: Bytes from one token to the next.
        count: How many tokens there are. Zeros are written for the others.
        zeros: The address of sixteen zeros.
        out: Where to write the first input of all tokens.
        out_stride: Bytes from one input to the next.
    """
    rows = []
    for i in range(LANES):
        there = b.icmp_signed("<", Constant(I64, i), count)
        rows.append(load(b, b.select(there, b.add(x, b.mul(x_stride, Constant(I64, i))), zeros), 0))
    exponents = [b.and_(row, splat(EXPONENT)) for row in rows]
    strange = [b.icmp_signed("==", each, splat(EXPONENT)) for each in exponents]
    for i, column in enumerate(transposed(b, rows)):
        b.store(column, _pointer(b, b.add(out, b.mul(out_stride, Constant(I64, i))), 0, column.type), align=4)
    some = strange[0]
    for each in strange[1:]:
        some = b.or_(some, each)
    number = b.bitcast(some, ir.IntType(LANES))
    return b.zext(b.icmp_unsigned("!=", number, Constant(number.type, 0)), I64)


def turn_outputs(b: IRBuilder, y: Value, y_stride: Value, out: Value, out_stride: Value) -> Value:
    """Transpose sixteen outputs of sixteen tokens.

    Args:
        b: The builder that the code is appended to.
        y: The address of the first output of these tokens.
        y_stride: Bytes from one output to the next.
        out: Where to write the outputs of the first token.
        out_stride: Bytes from one token to the next.
    """
    rows = [load(b, b.add(y, b.mul(y_stride, Constant(I64, i))), 0) for i in range(LANES)]
    for i, row in enumerate(transposed(b, rows)):
        b.store(row, _pointer(b, b.add(out, b.mul(out_stride, Constant(I64, i))), 0, row.type), align=4)
    return ZERO


def take_job(b: IRBuilder, counter: Value) -> Value:
    """Return the number at an address, and add one to it. Threads that do so at once get different numbers.

    Args:
        b: The builder that the code is appended to.
        counter: The address of a 64-bit number.
    """
    return b.atomic_rmw("add", b.inttoptr(counter, I64.as_pointer()), Constant(I64, 1), "monotonic")


def _of_chunk(n: int, m: int) -> tuple[int, int, int]:
    """Return the kept entries of a row in a chunk, their words of indices, and the bits of an index."""
    kept, bits = INPUTS // m * n, index_bits(m)
    return kept, kept * bits // WORD, bits


def _pointer(b: IRBuilder, address: Value, offset: int, kind: ir.Type) -> Value:
    return b.inttoptr(b.add(address, Constant(I64, offset)), kind.as_pointer())


def _load_floats(b: IRBuilder, address: Value, offset: int) -> Value:
    return b.load(_pointer(b, address, offset, FLOATS), align=4)


def _load_values(b: IRBuilder, address: Value, k: int, value_bits: int) -> Value:
    """Load the k-th value of sixteen rows, and prefetch later values."""
    size = 2 * value_bits
    _prefetch(b, _pointer(b, address, size * k + AHEAD, I8))
    if value_bits == 32:
        return _load_floats(b, address, BYTES * k)
    halves = b.load(_pointer(b, address, size * k, VectorType(I16, LANES)), align=2)
    return b.bitcast(b.shl(b.zext(halves, VectorType(I32, LANES)), splat(16)), FLOATS)


def _load_value(b: IRBuilder, address: Value, k: int, value_bits: int) -> Value:
    """Load the k-th value of one row."""
    if value_bits == 32:
        return b.load(_pointer(b, address, BYTES * k, F32), align=4)
    half = b.load(_pointer(b, address, 2 * LANES * k, I16), align=2)
    return b.bitcast(b.shl(b.zext(half, I32), Constant(I32, 16)), F32)


def _broadcast(b: IRBuilder, number: Value) -> Value:
    first = b.insert_element(Constant(FLOATS, ir.Undefined), number, Constant(I32, 0))
    return b.shuffle_vector(first, Constant(FLOATS, ir.Undefined), splat(0))


def _load_group(b: IRBuilder, x: Value, group: int, m: int) -> Value:
    """Load a group of m inputs, and repeat it over the lanes."""
    vector = VectorType(F32, m)
    entries = b.load(_pointer(b, x, 4 * m * group, vector), align=4)
    return b.shuffle_vector(entries, entries, lanes([lane % m for lane in range(LANES)]))


def _select(b: IRBuilder, entries: Value, places: Value, m: int) -> Value:
    """Return, for each lane, the entry of the group that the lowest bits of `places` name."""
    features = host_features()
    if "avx512f" in features:
        name = "llvm.x86.avx512.vpermilvar.ps.512" if m == 4 else "llvm.x86.avx512.permvar.sf.512"
        return _call(b, name, entries, places)
    if "avx2" in features:
        name = "llvm.x86.avx.vpermilvar.ps.256" if m == 4 else "llvm.x86.avx2.permps"
        halves = []
        for half in (lanes(range(8)), lanes(range(8, 16))):
            halves.append(_call(b, name, *(b.shuffle_vector(each, each, half) for each in (entries, places))))
        return b.shuffle_vector(*halves, lanes(range(16)))
    return _select_by_bits(b, entries, places, m)


def _select_by_bits(b: IRBuilder, entries: Value, places: Value, m: int) -> Value:
    """Select by one choice for each bit of an index, with instructions that every CPU has."""
    left = [b.shuffle_vector(entries, entries, splat(i)) for i in range(m)]
    bit = 1
    while len(left) > 1:
        is_set = b.icmp_signed("!=", b.and_(places, splat(bit)), splat(0))
        left = [b.select(is_set, odd, even) for even, odd in zip(left[::2], left[1::2], strict=True)]
        bit *= 2
    return left[0]


def _fused(b: IRBuilder, x: Value, y: Value, z: Value) -> Value:
    """Return x * y + z, rounded once where the CPU can do that."""
    if platform.machine().lower() in X86 and "fma" not in host_features():
        return b.fadd(b.fmul(x, y), z)  # the intrinsic would be sixteen calls of a function
    return _call(b, "llvm.fma.v16f32", x, y, z)


def _prefetch(b: IRBuilder, place: Value) -> None:
    """Ask for the cache line at an address, which need not exist."""
    kind = ir.FunctionType(ir.VoidType(), [place.type, I32, I32, I32])
    function = b.module.declare_intrinsic("llvm.prefetch", [place.type], kind)
    b.call(function, [place, *(Constant(I32, number) for number in (0, 3, 1))])  # read, keep in all caches, data


def _call(b: IRBuilder, name: str, *arguments: Value) -> Value:
    """Call an intrinsic of LLVM whose result has the type of its first argument."""
    kind = ir.FunctionType(arguments[0].type, [argument.type for argument in arguments])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), arguments)


assert ROWS == LANES  # one row for each lane
