"""Scores for the tests of solvers, and references that say how good a mask can be."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from nxm_hf.patterns import NM
from tests.support.references import top

INF = float("inf")
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
EXTREMES = [0.0, -0.0, 1.0, -1.0, 2.0, 3.0, 1e-45, 1e-40, 3e38, INF, -INF]
scores_with_ties = st.sampled_from(EXTREMES) | st.integers(-2, 2).map(float) | st.floats(width=32, allow_nan=False)


class Remembered:
    """The moments of an optimizer that remembers these squared gradients."""

    def __init__(self, squares: Tensor | None):
        self.squares = squares


def generator(seed: int = 0) -> torch.Generator:
    """Return a random generator of torch."""
    return torch.Generator().manual_seed(seed)


def seeded(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Return normal random numbers."""
    return torch.randn(shape, generator=generator(seed)).to(dtype)


def highest(scores: Tensor, count: int) -> Tensor:
    """Return the mask of the highest of a few scores, as `top` ranks them."""
    if not 0 < count < scores.numel():
        return torch.full(scores.shape, count > 0)
    return top(scores.flatten(), NM(count, scores.numel())).view(scores.shape)


def assert_stays_on_device(solve: Callable[..., Tensor], scores: Tensor, pattern: Any) -> None:
    """Assert that a solver gives the same mask where new tensors are made on another device than that of the scores."""
    expected = solve(scores, pattern)
    with torch.device("meta"):
        mask = solve(scores, pattern)
    assert mask.device == scores.device and mask.dtype == torch.bool and torch.equal(mask, expected)


# Transposable tiles


def tiles_of(weight: Tensor, m: int) -> Tensor:
    """Cut a weight into tiles: (R * m, C * m) -> (tiles, m, m)."""
    height, width = weight.shape[0] // m, weight.shape[1] // m
    return weight.view(height, m, width, m).transpose(1, 2).reshape(-1, m, m)


def assert_holds(mask: Tensor, n: int, m: int) -> None:
    """Assert that each row and column of each tile keeps n."""
    tiles = tiles_of(mask, m)
    assert bool((tiles.sum(1) == n).all()) and bool((tiles.sum(2) == n).all())


def distributions(height: int, width: int) -> dict[str, Tensor]:
    """Return scores as weights have them, and as they never should."""
    normal, chance = (
        torch.randn(height, width, generator=generator()),
        torch.rand(height, width, generator=generator(1)),
    )
    size = normal.abs()
    loud = torch.where(torch.arange(height)[:, None] % 7 == 0, 1000.0, 1.0)
    return {
        "gaussian": size,
        "heavy tails": size**5,
        "log-normal": (3 * normal).exp(),
        "uniform": chance,
        "integers": (4 * chance).floor(),
        "mostly zero": size * (chance > 0.7),
        "loud rows": size * loud,
        "rank one": size[:, :1] * size[:1],
        "bfloat16": size.bfloat16(),
        "half": (size / 10).half(),
        "double": size.double() ** 9,
        "tiny": size * 1e-41,
        "huge": size * 1e37,
        "signed": normal,
        "flat": torch.full((height, width), 0.7),
        "zero": torch.zeros(height, width),
        "one": torch.zeros(height, width).index_fill_(0, torch.tensor([height // 2]), 1e30),
        "whole": (1000 * chance).long(),
    }


def worth(kept: list[float]) -> tuple[int, float]:
    """Return how a set of kept scores compares: first its infinities, then the sum of the rest."""
    return sum((x == INF) - (x == -INF) for x in kept), sum(x for x in kept if abs(x) != INF)


def by_columns_filled(tile: list[list[float]], n: int) -> tuple[int, float]:
    """Return the best worth, by a dynamic programme over how full the columns are."""
    m = len(tile)
    best = {(0,) * m: (0, 0)}
    for row in tile:
        after = {}
        for full, (infinite, rest) in best.items():
            for kept in combinations(range(m), n):
                state = tuple(count + (column in kept) for column, count in enumerate(full))
                if max(state) > n:
                    continue
                value = worth([row[column] for column in kept])
                value = (infinite + value[0], rest + value[1])
                after[state] = max(after.get(state, value), value)
        best = after
    return best[(n,) * m]


def by_linear_programme(tile: Tensor, n: int, exactly: bool = True) -> float:
    """Return the best sum with n in each row and column, or at most n; the corners of these polytopes are masks."""
    optimize, sparse = pytest.importorskip("scipy.optimize"), pytest.importorskip("scipy.sparse")
    m = len(tile)
    ones, identity = torch.ones(1, m).numpy(), sparse.identity(m)
    counts = sparse.vstack([sparse.kron(identity, ones), sparse.kron(ones, identity)]).tocsr()
    bounds = {"A_eq": counts, "b_eq": [n] * (2 * m)} if exactly else {"A_ub": counts, "b_ub": [n] * (2 * m)}
    found = optimize.linprog(-tile.flatten().numpy(), bounds=(0, 1), method="highs", **bounds)
    return -found.fun
