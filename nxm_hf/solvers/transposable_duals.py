"""Exact for transposable N:M on any device: a price for every row and column, and paths where prices do not settle it.

With prices u of a tile's rows and v of its columns, the mask `q > u + v` keeps the most of all masks that have its own
counts; where those are n everywhere, it is the best. Setting each u, then each v, halfway between the n-th and the
next of what is left in its row or column brings nearly every tile there. In the others, the columns are filled up with
what ties, and paths then move what rows have too much.
"""

from typing import Any

import torch
from torch import Tensor

from nxm_hf.solvers import gpu
from nxm_hf.solvers.comparator_network import select
from nxm_hf.solvers.transposable_paths import balance_rows
from nxm_hf.solvers.transposable_tiles import quantized, quantized_wide, tiles

CHECKS = (4, 8, 16, 32)  # after so many rounds of prices, tiles that are settled leave, and those that never will
CPU_SCORES = 2**19  # priced at a time
GPU_SCORES = 2**24
POOL = 2  # so many times more are held, for few of them need the later rounds


def by_duals(scores: Tensor, pattern: Any) -> Tensor:
    """Keep the most score with n in each row and column of every tile."""
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
    """The best masks of whole scores, up to `size` tiles at a time: (m, m, tiles) to bool."""
    rows, cols, unsettled = _prices(q, n, size)
    mask = q - rows[:, None] > cols
    for places in unsettled.split(size):
        part = q[..., places]
        mask[..., places] = balance_rows(part, _filled(part, rows[:, places], cols[:, places], n), n)
    return mask


def _prices(q: Tensor, n: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Prices of rows and columns, (m, tiles) each, and the places of the tiles that they do not settle."""
    if gpu.suits_prices(q, n):
        rows, cols, settled = gpu.tier().prices(q, n)
        return rows, cols, (~settled).nonzero().squeeze(1)
    m, _, count = q.shape
    rows, cols, following = (q.new_zeros(m, count) for _ in range(3))
    work = q.new_empty((m + 1) * m * min(size, count))
    alive, left, begin = torch.arange(count, device=q.device), [], 0
    for end in CHECKS:
        moving = []
        for places in alive.split(size):
            first = len(places) == count
            part = q if first else q[..., places]
            space = work[: (m + 1) * m * len(places)].view(m + 1, m, -1)
            prices = _rounds(part, following[:, places], end - begin, n, space, begin == 0)
            rows[:, places], cols[:, places], following[:, places], settled, stuck = prices
            left.append(places[stuck])
            moving.append(places[~(settled | stuck)])
        alive, begin = torch.cat(moving), end
    return rows, cols, torch.cat([*left, alive])


def _rounds(q: Tensor, u: Tensor, times: int, n: int, work: Tensor, start: bool) -> tuple[Tensor, ...]:
    """Price so many times: rows, columns, the rows' next prices, and which tiles are settled or never will be."""
    if start:
        u = _middle(*_ranks(q.transpose(0, 1), torch.zeros_like(u), n, work))
    for turn in range(times):
        top, bottom = _ranks(q, u, n, work)
        v, tied = _middle(top, bottom), top == bottom  # the next ranks overwrite these
        high, low = _ranks(q.transpose(0, 1), v, n, work)
        if turn < times - 1:
            u = _middle(high, low)
    tied = tied.any(0)
    settled = ((low <= u) & (u < high)).all(0) & ~tied
    following = _middle(high, low)
    return u, v, following, settled, ~settled & (tied | (following == u).all(0))


def _ranks(lines: Tensor, prices: Tensor, n: int, work: Tensor) -> list[Tensor]:
    """The n-th and the next largest of `lines - prices`, (m, m, tiles) less (m, tiles), along the first dimension."""
    torch.sub(lines, prices[:, None], out=work[:-1])
    *wires, spare = work
    return select(wires, spare, (n - 1, n))


def _middle(high: Tensor, low: Tensor) -> Tensor:
    return low + ((high - low) >> 1)


def _filled(q: Tensor, rows: Tensor, cols: Tensor, n: int) -> Tensor:
    """The masks of the prices, n in each column: what ties goes to the rows that lack most and have least to come."""
    left = (q - rows[:, None]).sub_(cols)
    kept, tied = left > 0, left == 0
    m = len(q)
    number = torch.arange(m, 0, -1, dtype=torch.int32, device=q.device)[:, None]
    lacking, coming = n - kept.sum(1, dtype=torch.int32), tied.sum(1, dtype=torch.int32)
    for mine, ties in zip(kept.unbind(1), tied.unbind(1), strict=True):
        coming -= ties.int()
        urgency = torch.where(ties, (2 * lacking - coming) * 2 * m + number, -(2**30))
        room = n - mine.sum(0, keepdim=True)
        least = urgency.sort(0, descending=True).values.gather(0, (room - 1).clamp_(min=0))
        taken = (urgency >= least) & (room > 0)
        mine |= taken
        lacking -= taken.int()
    return kept
