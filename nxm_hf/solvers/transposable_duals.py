"""Exact for transposable N:M on any device: dual prices of rows and columns, and paths for what they do not settle.

Let u be prices of a tile's rows and v of its columns. The mask `q > u + v` has the largest score of all masks with the
same counts. Where those are n everywhere, it is the best. First each u, then each v is set halfway between the n-th and
the next largest reduced score of its line. This settles nearly every tile. In the others, the columns are filled up
with ties, and paths then move entries out of rows that have too many.
"""

import torch
from torch import Tensor

from nxm_hf.solvers import gpu
from nxm_hf.solvers.base import NMPattern
from nxm_hf.solvers.comparator_network import select
from nxm_hf.solvers.transposable_paths import balance_rows
from nxm_hf.solvers.transposable_tiles import quantized, quantized_wide, tiles

CHECKS = (4, 8, 16, 32)  # after so many rounds, tiles are dropped that are settled, or that prices cannot settle
CPU_SCORES = 2**19  # priced at a time
GPU_SCORES = 2**24
POOL = 2  # so many times more are loaded, as few of them need the later rounds


def by_duals(scores: Tensor, pattern: NMPattern) -> Tensor:
    """Keep the most score with n in each row and column of every tile.

    Args:
        scores: The scores.
        pattern: The transposable pattern.
    """
    n, m = pattern.n, pattern.m
    room = CPU_SCORES if scores.device.type == "cpu" else GPU_SCORES
    size = max(1, room // m**2)
    scores = scores.contiguous()
    mask = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    for part, keep in zip(tiles(scores, m, POOL * size), tiles(mask, m, POOL * size), strict=True):
        flat = part.flatten(2)
        q, wide = quantized(flat)
        best = solve_tiles(q, n, size)
        if wide.any():
            best[..., wide] = solve_tiles(quantized_wide(flat[..., wide]), n, size)
        keep.copy_(best.view(part.shape))
    return mask


def solve_tiles(q: Tensor, n: int, size: int) -> Tensor:
    """Return the best masks of tiles with integer scores.

    Args:
        q: The scores, (m, m, tiles).
        n: Kept entries of each row and column.
        size: How many tiles to process at a time.
    """
    rows, cols, unsettled = _prices(q, n, size)
    mask = q - rows[:, None] > cols
    for tiles_left in unsettled.split(size):
        part = q[..., tiles_left]
        filled = _fill_columns(part, rows[:, tiles_left], cols[:, tiles_left], n)
        mask[..., tiles_left] = balance_rows(part, filled, n)
    return mask


def _prices(q: Tensor, n: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return prices of rows and columns, (m, tiles) each, and the indices of the tiles that they do not settle."""
    if gpu.supports_prices(q, n):
        rows, cols, settled = gpu.prices(q, n)
        return rows, cols, (~settled).nonzero().squeeze(1)
    m, _, count = q.shape
    rows, cols, following = (q.new_zeros(m, count) for _ in range(3))
    work = q.new_empty((m + 1) * m * min(size, count))
    open_tiles, stuck_tiles, begin = torch.arange(count, device=q.device), [], 0
    for end in CHECKS:
        still_open = []
        for indices in open_tiles.split(size):
            part = q if len(indices) == count else q[..., indices]
            buffer = work[: (m + 1) * m * len(indices)].view(m + 1, m, -1)
            prices = _rounds(part, following[:, indices], end - begin, n, buffer, begin == 0)
            rows[:, indices], cols[:, indices], following[:, indices], settled, stuck = prices
            stuck_tiles.append(indices[stuck])
            still_open.append(indices[~(settled | stuck)])
        open_tiles, begin = torch.cat(still_open), end
    return rows, cols, torch.cat([*stuck_tiles, open_tiles])


def _rounds(q: Tensor, u: Tensor, times: int, n: int, work: Tensor, start: bool) -> tuple[Tensor, ...]:
    """Do some rounds of prices.

    Return the prices of rows and columns, the next prices of rows, and which tiles are settled, or never will be.
    """
    if start:
        u = _middle(*_ranks(q.transpose(0, 1), torch.zeros_like(u), n, work))
    following = u
    for _ in range(times):
        u = following
        top, bottom = _ranks(q, u, n, work)
        v, tied = _middle(top, bottom), top == bottom  # the next ranks overwrite these
        high, low = _ranks(q.transpose(0, 1), v, n, work)
        following = _middle(high, low)
    tied = tied.any(0)
    settled = ((low <= u) & (u < high)).all(0) & ~tied
    return u, v, following, settled, ~settled & (tied | (following == u).all(0))


def _ranks(lines: Tensor, prices: Tensor, n: int, work: Tensor) -> list[Tensor]:
    """Return the n-th and the next largest of `lines - prices` along the first dimension of (m, m, tiles)."""
    torch.sub(lines, prices[:, None], out=work[:-1])
    *wires, spare = work
    return select(wires, spare, (n - 1, n))


def _middle(high: Tensor, low: Tensor) -> Tensor:
    return low + ((high - low) >> 1)


def _fill_columns(q: Tensor, rows: Tensor, cols: Tensor, n: int) -> Tensor:
    """Return the masks of the prices, with n in each column.

    Ties go to the rows that lack most, and that have fewest ties to come.
    """
    left = (q - rows[:, None]).sub_(cols)
    kept, tied = left > 0, left == 0
    m = len(q)
    order = torch.arange(m, 0, -1, dtype=torch.int32, device=q.device)[:, None]
    lacking, coming = n - kept.sum(1, dtype=torch.int32), tied.sum(1, dtype=torch.int32)
    for column, ties in zip(kept.unbind(1), tied.unbind(1), strict=True):
        coming -= ties.int()
        urgency = torch.where(ties, (2 * lacking - coming) * 2 * m + order, -(2**30))
        room = n - column.sum(0, keepdim=True)
        least = urgency.sort(0, descending=True).values.gather(0, (room - 1).clamp_(min=0))
        taken = (urgency >= least) & (room > 0)
        column |= taken
        lacking -= taken.int()
    return kept
