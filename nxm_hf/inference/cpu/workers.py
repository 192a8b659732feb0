"""Workers: loops around the LLVM code, each run by as many threads as there are, which take jobs until none is left.

A worker has one argument, the address of a `Task`. All that it reads and writes stands there as 64-bit integers.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite.ir import IRBuilder, Value
from numba import carray, types
from numba.extending import intrinsic

from nxm_hf.inference.cpu import products
from nxm_hf.inference.layout import INPUTS, ROWS, WORD, index_bits
from nxm_hf.solvers.cpu import llvm_vectors
from nxm_hf.solvers.cpu.intrinsics import as_function, helper, inlined

# The fields of a task. Addresses, strides and sizes are in bytes.
FIELDS = (
    "next_job", "next_slot", "jobs", "self", "x", "x_stride", "tokens", "values", "indices", "bias", "y",
    "out_features", "chunks", "blocks", "splits", "scratch", "scratch_size", "strange",
)  # fmt: skip
(NEXT_JOB, NEXT_SLOT, JOBS, SELF, X, X_STRIDE, TOKENS, VALUES, INDICES, BIAS, Y, OUT, CHUNKS, BLOCKS, SPLITS, SCRATCH,
 SCRATCH_SIZE, STRANGE) = range(len(FIELDS))  # fmt: skip
FIELD_COUNT = len(FIELDS)
VECTOR = 4 * ROWS  # bytes of sixteen floats
TOGETHER = 32  # row blocks whose outputs stay in cache while all inputs pass: 256 KiB for tiles of 128 tokens


@dataclass(frozen=True)
class Worker:
    """A compiled worker.

    Args:
        address: The address of a C function of one pointer, which points to a task.
        compiled: The object that holds its code in memory.
    """

    address: int
    compiled: object


def tokens_of_tile() -> int:
    """Return how many tokens a tile has: as many as the registers of this CPU hold for one row."""
    return 128 if "avx512f" in products.host_features() else 64


# numba matches the parameters of these functions by name and number, so each is written out.


def _few(
    context: Any, n: Any, m: Any, value_bits: Any, tokens: Any,
    x: Any, x_stride: Any, values: Any, indices: Any, bias: Any, y: Any, y_stride: Any, chunks: Any,
) -> Any:  # fmt: skip
    return as_function(products.few_tokens, n, m, value_bits, tokens)


def _row(
    context: Any, n: Any, m: Any, value_bits: Any, vectors: Any, x: Any, values: Any, indices: Any, y: Any, ahead: Any
) -> Any:
    return as_function(products.one_row, n, m, value_bits, vectors)


def _turn_inputs(context: Any, x: Any, x_stride: Any, count: Any, zeros: Any, out: Any, out_stride: Any) -> Any:
    return as_function(products.turn_inputs)


def _turn_outputs(context: Any, y: Any, y_stride: Any, out: Any, out_stride: Any) -> Any:
    return as_function(products.turn_outputs)


def _take(context: Any, counter: Any) -> Any:
    return as_function(products.take_job)


few, row = inlined(_few), inlined(_row)
turn_inputs, turn_outputs, take = inlined(_turn_inputs), inlined(_turn_outputs), inlined(_take)


def _at(kind: Any) -> Any:
    @intrinsic
    def at(context: Any, address: Any) -> Any:
        def generate(context: Any, builder: IRBuilder, signature: Any, values: list[Value]) -> Value:
            return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), generate

    return at


floats_at, integers_at = _at(types.float32), _at(types.int32)


@helper
def has_strange(x: int, count: int) -> int:
    """Return 1 if one of these floats is infinite or NaN.

    Args:
        x: The address of the first.
        count: How many there are.
    """
    bits = carray(integers_at(x), count)
    found = 0
    for i in range(count):
        found |= (bits[i] & products.EXPONENT) == products.EXPONENT
    return found


@helper
def write_outputs(side: np.ndarray, y: int, tokens: int, outputs: int, out_features: int) -> None:
    """Copy the outputs of an incomplete block of rows, or of an incomplete sixteen of tokens.

    Args:
        side: The outputs, [tokens, 16].
        y: The address of the first output.
        tokens: How many tokens to copy.
        outputs: How many outputs of each.
        out_features: How many outputs a token has.
    """
    target = carray(floats_at(y), (tokens - 1) * out_features + outputs)
    for token in range(tokens):
        for i in range(outputs):
            target[token * out_features + i] = side[token, i]


@cache
def few_tokens_worker(n: int, m: int, value_bits: int) -> Worker:
    """Return the worker for few tokens, whose jobs are ranges of row blocks.

    Args:
        n: Kept entries of a group.
        m: Entries of a group.
        value_bits: 32 for fp32 values, 16 for bf16.
    """
    value_bytes = INPUTS // m * n * ROWS * value_bits // 8  # of a chunk of sixteen rows
    index_bytes = INPUTS // m * n * index_bits(m) // WORD * VECTOR

    def work(data: Any) -> None:
        p = carray(data, FIELD_COUNT)
        side = np.empty((8, ROWS), np.float32)
        while True:
            job = take(p[SELF])
            if job >= p[JOBS]:
                return
            if job == 0:
                p[STRANGE] = has_strange(p[X], p[TOKENS] * p[X_STRIDE] // 4)
            for block in range(job * p[BLOCKS] // p[JOBS], (job + 1) * p[BLOCKS] // p[JOBS]):
                values = p[VALUES] + block * p[CHUNKS] * value_bytes
                indices = p[INDICES] + block * p[CHUNKS] * index_bytes
                bias, chunks = p[BIAS] + block * VECTOR, p[CHUNKS]
                outputs = min(ROWS, p[OUT] - block * ROWS)
                token = 0
                while token < p[TOKENS]:
                    left = p[TOKENS] - token
                    x, y = p[X] + token * p[X_STRIDE], p[Y] + 4 * (token * p[OUT] + block * ROWS)
                    out, stride = y, 4 * p[OUT]
                    if outputs < ROWS:
                        out, stride = side.ctypes.data, VECTOR
                    if left >= 8:
                        count = 8
                        few(n, m, value_bits, 8, x, p[X_STRIDE], values, indices, bias, out, stride, chunks)
                    elif left >= 4:
                        count = 4
                        few(n, m, value_bits, 4, x, p[X_STRIDE], values, indices, bias, out, stride, chunks)
                    elif left >= 2:
                        count = 2
                        few(n, m, value_bits, 2, x, p[X_STRIDE], values, indices, bias, out, stride, chunks)
                    else:
                        count = 1
                        few(n, m, value_bits, 1, x, p[X_STRIDE], values, indices, bias, out, stride, chunks)
                    if outputs < ROWS:
                        write_outputs(side, y, count, outputs, p[OUT])
                    token += count

    return _compiled(work)


@cache
def many_tokens_worker(n: int, m: int, value_bits: int, vectors: int) -> Worker:
    """Return the worker for many tokens. Each of its jobs is a part of the rows for one tile of tokens.

    Args:
        n: Kept entries of a group.
        m: Entries of a group.
        value_bits: 32 for fp32 values, 16 for bf16.
        vectors: A sixteenth of the tokens of a tile, a power of two.
    """
    kept = INPUTS // m * n  # of a row, in a chunk
    words = kept * index_bits(m) // WORD
    value_size = value_bits // 8
    tile, column = ROWS * vectors, VECTOR * vectors

    def work(data: Any) -> None:
        p = carray(data, FIELD_COUNT)
        x = p[SCRATCH] + take(p[SELF] + 8) * p[SCRATCH_SIZE]
        y = x + p[CHUNKS] * INPUTS * column
        sums = carray(floats_at(y), (TOGETHER * ROWS, tile))
        bias = carray(floats_at(p[BIAS]), p[BLOCKS] * ROWS)
        side, zeros = np.empty((ROWS, ROWS), np.float32), np.zeros(ROWS, np.float32)
        turned = -1
        while True:
            job = take(p[SELF])
            if job >= p[JOBS]:
                return
            number, part = job // p[SPLITS], job % p[SPLITS]
            first = number * tile
            if number != turned:
                for token in range(0, tile, ROWS):
                    count = min(max(p[TOKENS] - first - token, 0), ROWS)
                    source = p[X] + (first + token) * p[X_STRIDE]
                    for i in range(0, p[CHUNKS] * INPUTS, ROWS):
                        target = x + i * column + 4 * token
                        p[STRANGE] |= turn_inputs(source + 4 * i, p[X_STRIDE], count, zeros.ctypes.data, target, column)
                turned = number
            begin, end = part * p[BLOCKS] // p[SPLITS], (part + 1) * p[BLOCKS] // p[SPLITS]
            for block in range(begin, end, TOGETHER):
                blocks = min(TOGETHER, end - block)
                for i in range(blocks * ROWS):
                    sums[i, :] = bias[block * ROWS + i]
                for chunk in range(p[CHUNKS]):
                    inputs = x + chunk * INPUTS * column
                    for each in range(blocks):
                        at = (block + each) * p[CHUNKS] + chunk
                        values = p[VALUES] + at * kept * ROWS * value_size
                        indices = p[INDICES] + at * words * VECTOR
                        following = at + p[CHUNKS] if each + 1 < blocks else block * p[CHUNKS] + chunk + 1
                        ahead = p[VALUES] + following * kept * ROWS * value_size
                        for i in range(ROWS):
                            target = y + (each * ROWS + i) * column
                            source = values + i * value_size
                            fetched = ahead + i * kept * value_size
                            row(n, m, value_bits, vectors, inputs, source, indices + 4 * i, target, fetched)
                for each in range(blocks):
                    outputs = min(ROWS, p[OUT] - (block + each) * ROWS)
                    for token in range(0, min(tile, p[TOKENS] - first), ROWS):
                        count = min(ROWS, p[TOKENS] - first - token)
                        source = y + each * ROWS * column + 4 * token
                        target = p[Y] + 4 * ((first + token) * p[OUT] + (block + each) * ROWS)
                        if count == ROWS and outputs == ROWS:
                            turn_outputs(source, column, target, 4 * p[OUT])
                        else:
                            turn_outputs(source, column, side.ctypes.data, VECTOR)
                            write_outputs(side, target, count, outputs, p[OUT])

    return _compiled(work)


def _compiled(work: Callable[[Any], None]) -> Worker:
    """Compile a worker to a C function of one address. The result is cached on disk where that is possible."""
    work.__qualname__ = f"{work.__qualname__}_{_digest_of_sources()}"
    signature = types.void(types.CPointer(types.int64))
    try:
        compiled: Any = numba.cfunc(signature, cache=True)(work)
    except RuntimeError:  # no directory that can be written to
        compiled = numba.cfunc(signature)(work)
    return Worker(compiled.address, compiled)


@cache
def _digest_of_sources() -> str:
    files = [Path(str(module.__file__)) for module in (products, llvm_vectors)] + [Path(__file__)]
    return hashlib.sha1(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
