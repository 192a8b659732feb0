"""Kernels for GPUs, in Triton: what is done to N:M groups, and the prices of transposable tiles.

Numbers are compared as whole ones, by their bits: that knows no rounding, no flushing and no zeros of two signs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr

ENTRIES = 8192  # comparisons that a program holds at a time
ROUNDS = 32  # of prices, at most
SIGN: constexpr = constexpr(-(2**31))
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32}
INFINITY = {torch.float32: 0x7F800000, torch.bfloat16: 0x7F80, torch.float16: 0x7C00}  # as bits


def run(task: str, n: int, m: int, *tensors: Tensor) -> int:
    """Do a task to contiguous tensors of one size: what it counts, and -1 where it met a NaN.

    mask            (scores, out)
    magnitude_mask  (weight, out)
    project         (weight, out)
    admm_update     (weight, r)            entries of the mask that changed
    remask          (weight, mask, dense)  the same, and entries of the old mask times 2**32
    keep            (weight, mask)
    """
    changed, before, broken = launch(task, n, m, *tensors).sum(0).tolist()
    return -1 if broken and task not in ("mask", "keep") else changed | before << 32


def launch(task: str, n: int, m: int, *tensors: Tensor) -> Tensor:
    """`run` without waiting: for every program what changed, what was kept before, and what is NaN."""
    groups = tensors[0].numel() // m
    size = ENTRIES // max(m, 4) ** 2
    programs = triton.cdiv(groups, size)
    found = torch.zeros(programs, 3, dtype=torch.int64, device=tensors[0].device)
    x, y, z = ([tensor.view(BITS[tensor.dtype.itemsize]) for tensor in tensors] * 2)[:3]
    with torch.cuda.device_of(x):
        over_groups[(programs,)](x, y, z, found, groups, n, m, size, task, INFINITY[tensors[0].dtype])
    return found


def prices(q: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of tiles (m, m, count): prices of rows and of columns, (m, count) each, and which tiles they settle."""
    m, _, count = q.shape
    q, size = q.contiguous(), max(1024 // m**2, 1)
    rows, cols = (torch.empty(m, count, dtype=torch.int32, device=q.device) for _ in range(2))
    settled = torch.empty(count, dtype=torch.int8, device=q.device)
    with torch.cuda.device_of(q):
        price_tiles[(triton.cdiv(count, size),)](q, rows, cols, settled, count, n, m, size, ROUNDS)
    return rows, cols, settled.bool()


@triton.jit
def over_groups(x, y, z, found, groups, N: constexpr, M: constexpr, G: constexpr, TASK: constexpr, INFINITY: constexpr):
    """A task on G groups of M; `found` gets the three counts of this program."""
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
        tl.store(y + at, largest((size ^ sign) - sign, N, M).to(tl.int8), mask=here)
    if TASK == "magnitude_mask":
        tl.store(y + at, largest(size, N, M).to(tl.int8), mask=here)
    if TASK == "project":
        kept = largest(size, N, M) & (size != 0)  # -0.0 becomes +0.0
        tl.store(y + at, tl.where(kept, bits, 0).to(y.dtype.element_ty), mask=here)
    if TASK == "keep":
        kept = (tl.load(y + at, mask=here, other=0) != 0) & (size != 0)
        tl.store(x + at, tl.where(kept, bits, 0), mask=here)
    if TASK == "admm_update":
        r = tl.load(y + at, mask=here, other=0)
        old = r & 0x7FFFFFFF
        before = largest(old, N, M)
        u = tl.where(before, 0, r).to(tl.float32, bitcast=True)  # its opposite
        v = (bits.to(tl.float32, bitcast=True) - u).to(tl.int32, bitcast=True)
        after = largest(v & 0x7FFFFFFF, N, M)
        broken = (old > INFINITY) | ((v & 0x7FFFFFFF) > INFINITY)
        tl.store(y + at, tl.where(after, v, v ^ SIGN), mask=here)
    if TASK == "remask":
        before = tl.load(y + at, mask=here, other=0) != 0
        after = largest(size, N, M)
        product = bits.to(tl.float32, bitcast=True) * after.to(tl.float32)
        tl.store(z + at, bits, mask=here)
        tl.store(y + at, after.to(tl.int8), mask=here)
        tl.store(x + at, product.to(tl.int32, bitcast=True), mask=here)
    tl.store(found + 3 * program, total(here & (before != after)))
    if TASK == "remask":
        tl.store(found + 3 * program + 1, total(here & before))
    tl.store(found + 3 * program + 2, total(here & broken))


@triton.jit
def largest(keys, N: constexpr, M: constexpr):
    """Flags of the N largest of each row; of equals the first."""
    place = tl.arange(0, M)
    here, others = keys[:, :, None], keys[:, None, :]
    beaten = (others > here) | ((others == here) & (place[None, None, :] < place[None, :, None]))
    return tl.sum(beaten.to(tl.int32), axis=2) < N


@triton.jit
def total(flags):
    """How many flags are set."""
    return tl.sum(tl.sum(flags.to(tl.int32), axis=1), axis=0)


@triton.jit
def price_tiles(q, rows, cols, settled, count, N: constexpr, M: constexpr, T: constexpr, ROUNDS: constexpr):
    """Price the rows and the columns of T tiles in turns, until all are settled."""
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
            row = middle(entries - col[None, :, :], 1, N)
            col = middle(entries - row[:, None, :], 0, N)
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
def middle(left, AXIS: constexpr, N: constexpr):
    """Halfway between the N-th largest along an axis, which is found by bisection, and the next."""
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
