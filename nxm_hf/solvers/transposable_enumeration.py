"""Exact for transposable N:M with M = 4: try every mask on every tile."""

from functools import cache
from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor

CPU_TILES = 2**12  # tried at a time: their sums, 90 each, stay in cache
GPU_TILES = 2**18  # bounds the memory of those sums

Rows = tuple[tuple[int, ...], ...]


def four_by_four(scores: Tensor, pattern: Any) -> bool:
    """Where the masks of a tile are few enough."""
    return pattern.m == 4


def by_enumeration(scores: Tensor, pattern: Any) -> Tensor:
    """Keep the most score with n in each row and column of every tile; of equal masks the first."""
    m = pattern.m
    height, width = scores.shape[-2] // m, scores.shape[-1] // m
    tiles = scores.reshape(*scores.shape[:-2], height, m, width, m).transpose(-3, -2)  # (..., R, C, m, m)
    flat = tiles.reshape(-1, m * m)
    size = CPU_TILES if scores.device.type == "cpu" else GPU_TILES
    best = torch.cat([_best(part, pattern.n, m) for part in flat.split(size)])
    kept = _masks(pattern.n, m, scores.device)[best]
    return kept.view(tiles.shape).transpose(-3, -2).reshape(scores.shape)


@cache
def every_tile(n: int, m: int) -> tuple[Rows, ...]:
    """Every m-by-m mask with n kept in each row and column, as the kept columns of each row, in lexicographic order.

    >>> len(every_tile(2, 4)), len(every_tile(1, 4)), every_tile(1, 4)[0]
    (90, 24, ((0,), (1,), (2,), (3,)))
    """
    tiles = product(combinations(range(m), n), repeat=m)
    return tuple(tile for tile in tiles if all(sum(tile, ()).count(column) == n for column in range(m)))


@cache
def _masks(n: int, m: int, device: torch.device) -> Tensor:
    """`every_tile` as a (masks, m²) bool tensor."""
    drawn = [[column in kept for kept in tile for column in range(m)] for tile in every_tile(n, m)]
    return torch.tensor(drawn, device=device)


@cache
def _halves(n: int, m: int) -> tuple[tuple[int, int], ...]:
    """Which pair of rows stands in the upper and which in the lower half of every tile."""
    place = {pair: i for i, pair in enumerate(product(combinations(range(m), n), repeat=2))}
    return tuple((place[tile[:2]], place[tile[2:]]) for tile in every_tile(n, m))


def _best(tiles: Tensor, n: int, m: int) -> Tensor:
    """The place in `every_tile` of the mask that keeps the most of each tile: (tiles, m²) -> (tiles,)."""
    exact = torch.float32 if tiles.is_floating_point() and tiles.dtype != torch.float64 else torch.float64
    scores = tiles.t().to(exact).contiguous()
    peak = scores.abs().amax()
    if not peak.isinf():
        return _first_largest(_kept_scores(_without_overflow(scores, peak), n, m))
    # An infinite score outweighs all finite ones together: first the number of those, then the rest.
    infinite = scores.isinf()
    finite = scores.masked_fill(infinite, 0)
    counts = _kept_scores(scores.sign() * infinite, n, m)
    rest = _kept_scores(_without_overflow(finite, finite.abs().amax()), n, m)
    return _first_largest(rest.masked_fill_(counts < counts.amax(0), -torch.inf))


def _first_largest(values: Tensor) -> Tensor:
    """Where along the first dimension the first maximum stands; this is twice as fast as asking for it. Overwrites."""
    count = len(values)
    number = torch.arange(count, 0, -1, dtype=values.dtype, device=values.device)
    return (count - torch.eq(values, values.amax(0), out=values).mul_(number[:, None]).amax(0)).long()


def _without_overflow(scores: Tensor, peak: Tensor) -> Tensor:
    """Divided by m², a power of two, where a sum could overflow; that orders the sums the same."""
    return scores / len(scores) if peak > torch.finfo(scores.dtype).max / len(scores) else scores


def _kept_scores(scores: Tensor, n: int, m: int) -> Tensor:
    """What each mask keeps of each tile: (m², tiles) -> (masks, tiles).

    Sums of fixed order, no matrix product: that one rounds by device, by shape and by the TF32 switch.
    """
    columns = scores.view(m, m, -1).unbind(1)  # each (rows, tiles)
    lines = torch.stack([sum(columns[i] for i in kept) for kept in combinations(range(m), n)], 1)
    # (row pairs, tiles)
    top, bottom = ((a[:, None] + b).flatten(0, 1).unbind() for a, b in (lines[:2], lines[2:]))
    sums = scores.new_empty(len(every_tile(n, m)), scores.shape[1])
    for (upper, lower), out in zip(_halves(n, m), sums.unbind(), strict=True):
        torch.add(top[upper], bottom[lower], out=out)
    return sums
