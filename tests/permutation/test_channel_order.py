"""The search for an order of channels: against all orders, and against every swap of two."""

from itertools import combinations, permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nxm_hf.permutation.channel_order import best_order, kept_score


def by_brute_force(scores: torch.Tensor, n: int, m: int) -> float:
    """The most that any order of the channels keeps: every way to part them into groups, by recursion."""

    def best(left: tuple[int, ...]) -> float:
        if not left:
            return 0.0
        groups = ((left[0], *rest) for rest in combinations(left[1:], m - 1))
        return max(keeps(group) + best(tuple(c for c in left if c not in group)) for group in groups)

    def keeps(group: tuple[int, ...]) -> float:
        return sum(sum(sorted((row[c] for c in group), reverse=True)[:n]) for row in rows)

    rows = scores.t().tolist()
    return best(tuple(range(len(scores))))


@pytest.mark.parametrize("n, m, channels", [(1, 2, 6), (2, 4, 8), (1, 4, 8), (3, 4, 8), (2, 3, 9)])
def test_the_search_comes_close_to_the_best_of_all_orders(n, m, channels):
    shares = []
    for seed in range(12):
        scores = torch.randn(channels, 5, generator=torch.Generator().manual_seed(seed)).abs()
        before, best = kept_score(scores, n, m), by_brute_force(scores, n, m)
        found = kept_score(scores[best_order(scores, n, m, channels)], n, m)
        assert before <= found <= best + 1e-5
        shares.append((found - before) / (best - before) if best > before + 1e-6 else 1.0)
    assert sum(shares) / len(shares) > 0.9 and shares.count(max(shares)) >= 6


@settings(max_examples=25)
@given(
    st.integers(0, 10**6),
    st.sampled_from([(1, 2), (2, 4), (3, 4), (4, 8), (1, 3)]),
    st.integers(2, 5),
    st.integers(1, 2),
)
def test_no_swap_of_two_channels_would_keep_more(seed, pattern, groups, sections):
    n, m = pattern
    chance = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 6, (groups * m * sections, 3), generator=chance).float()  # many ties
    order = best_order(scores, n, m, groups * m, rounds=1000)
    section = torch.arange(len(order)) // (groups * m)
    assert torch.equal(order.sort().values, torch.arange(len(order))) and torch.equal(section[order], section)
    found = kept_score(scores[order], n, m)
    for i, j in combinations(range(len(order)), 2):
        if section[i] == section[j]:
            other = order.clone()
            other[[i, j]] = order[[j, i]]
            assert kept_score(scores[other], n, m) <= found + 1e-4


def test_the_worked_example_reaches_its_best():
    scores = torch.tensor([[4.0, 3, 2, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 2, 3, 4]]).t()
    best = max(
        kept_score(scores[[0, *rest]], 2, 4)
        for rest in map(list, permutations(range(1, 8)))
        if rest[:3] == sorted(rest[:3])
    )
    assert (kept_score(scores, 2, 4), kept_score(scores[best_order(scores, 2, 4, 8)], 2, 4), best) == (18, 20, 20)


@pytest.mark.parametrize("scores", [torch.zeros(12, 4), torch.ones(12, 4), torch.arange(12.0)[:, None].expand(12, 3)])
def test_where_nothing_is_to_gain_the_order_stays(scores):
    order = best_order(scores, 2, 4, 12)
    assert kept_score(scores[order], 2, 4) >= kept_score(scores, 2, 4)
    if scores.unique().numel() == 1:
        assert torch.equal(order, torch.arange(12))
