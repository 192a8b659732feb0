"""Kernels for GPUs, in Triton: operations on N:M groups, and the prices of transposable tiles.

Floats are compared as integers, by their bits: so nothing is rounded or flushed, and zeros of both signs are equal.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr

from nxm_hf.solvers.base import INFINITY_BITS, integer_view

OPERATIONS = frozenset({"mask", "magnitude_mask", "project", "admm_update", "remask", "keep"})
ENTRIES = 8192  # comparisons that a program holds at a time
ROUNDS = 32  # of prices, at most
SIGN: constexpr = constexpr(-(2**31))


def run(operation: str, n: int, m: int, *tensors: Tensor, factor: float = 0.0) -> int:
    """Do an operation to tensors.

        operation       tensors                count
        mask            (scores, out)          0
        magnitude_mask  (weight, out)          0
        project         (weight, out)          0
        admm_update     (weight, r)            entries of the mask that changed
        remask          (weight, mask, dense)  the same, plus 2**32 times the entries of the old mask
        keep            (weight, mask)         0

    Args:
        operation: The name of the operation.
        n: Kept entries of a group.
        m: Entries of a group.
        *tensors: Contiguous tensors of one size. The first has the dtype that counts.
        factor: Makes no difference to these operations.

    Returns:
        The count of the operation, or -1 where it met a NaN.
    """
    changed, before, broken = launch(operation, n, m, *tensors).sum(0).tolist()
    return -1 if broken and operation not in ("mask", "keep") else changed | before << 32


def fill_masks(n: int, m: int, scores: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    """Write the N:M masks of a list of scores.

    Args:
        n: Kept entries of a group.
        m: Entries of a group.
        scores: Scores of any strides.
        masks: Contiguous bool tensors of their shapes.
    """
    for each, mask in zip(scores, masks, strict=True):
        launch("mask", n, m, each.contiguous(), mask)


def launch(operation: str, n: int, m: int, *tensors: Tensor) -> Tensor:
    """Do an operation without waiting for its end.

    Args:
        operation: See `run`.
        n: Kept entries of a group.
        m: Entries of a group.
        *tensors: See `run`.

    Returns:
        For every program, how many entries changed, were kept before, and are NaN: (programs, 3).
    """
    groups = tensors[0].numel() // m
    size = ENTRIES // max(m, 4) ** 2
    programs = triton.cdiv(groups, size)
    counts = torch.zeros(programs, 3, dtype=torch.int64, device=tensors[0].device)
    x, y, z = ([integer_view(tensor) for tensor in tensors] * 2)[:3]
    with torch.cuda.device_of(x):
        _over_groups[(programs,)](x, y, z, counts, groups, n, m, size, operation, INFINITY_BITS[tensors[0].dtype])
    return counts


def prices(q: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return prices of rows and of columns, (m, tiles) each, and which tiles they settle.

    Args:
        q: Integer scores of tiles, (m, m, tiles).
        n: Kept entries of each row and column.
    """
    m, _, count = q.shape
    q, size = q.contiguous(), max(1024 // m**2, 1)
    rows, cols = (torch.empty(m, count, dtype=torch.int32, device=q.device) for _ in range(2))
    settled = torch.empty(count, dtype=torch.int8, device=q.device)
    with torch.cuda.device_of(q):
        _price_tiles[(triton.cdiv(count, size),)](q, rows, cols, settled, count, n, m, size, ROUNDS)
    return rows, cols, settled.bool()


# Triton reads the annotations of a kernel's parameters as types of its own, so mypy is told to accept their absence.


@triton.jit
def _over_groups(  # type: ignore[no-untyped-def]
    x, y, z, counts, groups, N: constexpr, M: constexpr, G: constexpr, TASK: constexpr, INFINITY: constexpr
):
    """Do an operation to G groups of M, and write the three counts of this program."""
    program = tl.program_id(0)
    group = program.to(tl.int64) * G + tl.arange(0, G)
    at = group[:, None] * M + tl.arange(0, M)[None, :]
    here = (group < groups)[:, None]
    bits = tl.load(x + at, mask=here, other=0).to(tl.int32)
    size = bits & (0x7FFFFFFF if INFINITY > 0xFFFF else 0x7FFF)
    broken = size > INFINITY
    before = size < 0  # none
    after = before
    if TASK == "mask":
        sign = bits >> 31
        tl.store(y + at, _largest((size ^ sign) - sign, N, M).to(tl.int8), mask=here)
    if TASK == "magnitude_mask":
        tl.store(y + at, _largest(size, N, M).to(tl.int8), mask=here)
    if TASK == "project":
        kept = _largest(size, N, M) & (size != 0)  # -0.0 becomes +0.0
        tl.store(y + at, tl.where(kept, bits, 0).to(y.dtype.element_ty), mask=here)
    if TASK == "keep":
        kept = (tl.load(y + at, mask=here, other=0) != 0) & (size != 0)
        tl.store(x + at, tl.where(kept, bits, 0), mask=here)
    if TASK == "admm_update":
        r = tl.load(y + at, mask=here, other=0)
        old = r & 0x7FFFFFFF
        before = _largest(old, N, M)
        u = tl.where(before, 0, r).to(tl.float32, bitcast=True)  # its opposite
        v = (bits.to(tl.float32, bitcast=True) - u).to(tl.int32, bitcast=True)
        after = _largest(v & 0x7FFFFFFF, N, M)
        broken = (old > INFINITY) | ((v & 0x7FFFFFFF) > INFINITY)
        tl.store(y + at, tl.where(after, v, v ^ SIGN), mask=here)
    if TASK == "remask":
        before = tl.load(y + at, mask=here, other=0) != 0
        after = _largest(size, N, M)
        product = bits.to(tl.float32, bitcast=True) * after.to(tl.float32)
        tl.store(z + at, bits, mask=here)
        tl.store(y + at, after.to(tl.int8), mask=here)
        tl.store(x + at, product.to(tl.int32, bitcast=True), mask=here)
    tl.store(counts + 3 * program, _total(here & (before != after)))
    if TASK == "remask":
        tl.store(counts + 3 * program + 1, _total(here & before))
    tl.store(counts + 3 * program + 2, _total(here & broken))


@triton.jit
def _largest(keys, N: constexpr, M: constexpr):  # type: ignore[no-untyped-def]
    """Return flags of the N largest of each row; of equal ones the first."""
    place = tl.arange(0, M)
    here, others = keys[:, :, None], keys[:, None, :]
    beaten = (others > here) | ((others == here) & (place[None, None, :] < place[None, :, None]))
    return tl.sum(beaten.to(tl.int32), axis=2) < N


@triton.jit
def _total(flags):  # type: ignore[no-untyped-def]
    """Return how many flags are set."""
    return tl.sum(tl.sum(flags.to(tl.int32), axis=1), axis=0)


@triton.jit
def _price_tiles(q, rows, cols, settled, count, N: constexpr, M: constexpr, T: constexpr, ROUNDS: constexpr):  # type: ignore[no-untyped-def]
    """Price the rows and the columns of T tiles in turns, until all are settled, and write the prices."""
    tile = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T)
    line = tl.arange(0, M)
    here = tile < count
    at = (line[:, None, None] * M + line[None, :, None]) * count.to(tl.int64) + tile[None, None, :]
    entries = tl.load(q + at, mask=here[None, None, :], other=0)
    col = tl.zeros((M, T), tl.int32)
    row = tl.zeros((M, T), tl.int32)
    good = tile < 0  # none
    turn = 0
    waiting = 1
    while (turn < ROUNDS) & (waiting > 0):
        for _ in range(4):
            row = _middle(entries - col[None, :, :], 1, N)
            col = _middle(entries - row[:, None, :], 0, N)
        kept = (entries - row[:, None, :] > col[None, :, :]).to(tl.int32)
        off = tl.abs(tl.sum(kept, axis=1) - N) + tl.abs(tl.sum(kept, axis=0) - N)
        good = tl.sum(off, axis=0) == 0
        waiting = tl.sum((here & (good == 0)).to(tl.int32), axis=0)
        turn += 4
    where = line[:, None] * count.to(tl.int64) + tile[None, :]
    tl.store(rows + where, row, mask=here[None, :])
    tl.store(cols + where, col, mask=here[None, :])
    tl.store(settled + tile, good.to(tl.int8), mask=here)


@triton.jit
def _middle(left, AXIS: constexpr, N: constexpr):  # type: ignore[no-untyped-def]
    """Return the middle of the N-th largest along an axis, which is found by bisection, and the next."""
    low = tl.min(left, axis=AXIS)
    high = tl.max(left, axis=AXIS)
    for _ in range(31):
        half = high - ((high - low) >> 1)
        enough = tl.sum((left >= tl.expand_dims(half, AXIS)).to(tl.int32), axis=AXIS) >= N
        low = tl.where(enough, half, low)
        high = tl.where(enough, high, half - 1)
    ties = tl.sum((left >= tl.expand_dims(low, AXIS)).to(tl.int32), axis=AXIS) > N
    below = tl.max(tl.where(left < tl.expand_dims(low, AXIS), left, -(2**30)), axis=AXIS)
    next_one = tl.where(ties, low, below)
    return next_one + ((low - next_one) >> 1)
