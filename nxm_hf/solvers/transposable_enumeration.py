"""Exact for transposable N:M with M = 4: try every mask on every tile."""

from functools import cache
from itertools import combinations, product

import torch
from torch import Tensor

from nxm_hf.solvers.base import NMPattern

CPU_TILES = 2**12  # processed at a time: their sums, 90 each, stay in cache
GPU_TILES = 2**18  # bounds the memory of those sums

Rows = tuple[tuple[int, ...], ...]


def enumeration_supports(scores: Tensor, pattern: NMPattern) -> bool:
    """Return whether a tile has few enough masks to try them all.

    Args:
        scores: The scores; they make no difference.
        pattern: The transposable pattern.
    """
    return pattern.m == 4


def by_enumeration(scores: Tensor, pattern: NMPattern) -> Tensor:
    """Keep the most score with n in each row and column of every tile; of equal masks the first.

    Args:
        scores: The scores.
        pattern: The transposable pattern.
    """
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
    """Return every m-by-m mask with n kept in each row and column, in lexicographic order.

    Args:
        n: Kept entries of each row and column.
        m: Side of a tile.

    Returns:
        For each mask, the kept columns of each row.

    Example:
        >>> len(every_tile(2, 4)), len(every_tile(1, 4)), every_tile(1, 4)[0]
        (90, 24, ((0,), (1,), (2,), (3,)))
    """
    tiles = product(combinations(range(m), n), repeat=m)
    return tuple(tile for tile in tiles if all(sum(tile, ()).count(column) == n for column in range(m)))


@cache
def _masks(n: int, m: int, device: torch.device) -> Tensor:
    """Return `every_tile` as a (masks, m²) bool tensor."""
    masks = [[column in kept for kept in tile for column in range(m)] for tile in every_tile(n, m)]
    return torch.tensor(masks, device=device)


@cache
def _halves(n: int, m: int) -> tuple[tuple[int, int], ...]:
    """Return, for every tile, the numbers of the pairs of rows in its upper and its lower half."""
    number = {pair: i for i, pair in enumerate(product(combinations(range(m), n), repeat=2))}
    return tuple((number[tile[:2]], number[tile[2:]]) for tile in every_tile(n, m))


def _best(tiles: Tensor, n: int, m: int) -> Tensor:
    """Return the index in `every_tile` of the mask that keeps the most of each tile: (tiles, m²) -> (tiles,)."""
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
    """Return the index of the first maximum along the first dimension, twice as fast as `argmax`. Overwrites them."""
    count = len(values)
    order = torch.arange(count, 0, -1, dtype=values.dtype, device=values.device)
    return (count - torch.eq(values, values.amax(0), out=values).mul_(order[:, None]).amax(0)).long()


def _without_overflow(scores: Tensor, peak: Tensor) -> Tensor:
    """Return scores whose sums cannot overflow: divided by m², a power of two, which keeps the order of sums."""
    return scores / len(scores) if peak > torch.finfo(scores.dtype).max / len(scores) else scores


def _kept_scores(scores: Tensor, n: int, m: int) -> Tensor:
    """Return the score that each mask keeps of each tile: (m², tiles) -> (masks, tiles).

    It adds in a fixed order. A matrix product rounds differently by device, by shape and by the TF32 switch.
    """
    columns = scores.view(m, m, -1).unbind(1)  # each (rows, tiles)
    zero = scores.new_zeros(())
    lines = torch.stack([sum((columns[i] for i in kept), zero) for kept in combinations(range(m), n)], 1)
    # (row pairs, tiles)
    top, bottom = ((a[:, None] + b).flatten(0, 1).unbind() for a, b in (lines[:2], lines[2:]))
    sums = scores.new_empty(len(every_tile(n, m)), scores.shape[1])
    for (upper, lower), out in zip(_halves(n, m), sums.unbind(), strict=True):
        torch.add(top[upper], bottom[lower], out=out)
    return sums
