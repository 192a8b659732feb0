"""The transposable masks of 4x4 tiles against the unions of permutations, and what holds of every solver of them."""

from itertools import combinations, permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nxm_hf.patterns import Transposable
from nxm_hf.solvers import solve, transposable_enumeration
from nxm_hf.solvers.transposable_duals import by_duals
from nxm_hf.solvers.transposable_enumeration import by_enumeration, every_tile
from tests.support.scores import FLOATS, assert_stays_on_device, seeded, worth

torch.set_num_threads(1)

quick = settings(max_examples=150)
small_numbers = st.integers(-3, 9).map(float) | st.sampled_from([0.5, 0.0, float("inf"), float("-inf")])


def best_worth(tile, n):
    """The reference: masks as unions of n disjoint permutations; by Koenig's theorem there are no others."""
    unions = ({(i, line[i]) for line in lines for i in range(4)} for lines in combinations(permutations(range(4)), n))
    return max(worth([tile[i][j] for i, j in cells]) for cells in unions if len(cells) == 4 * n)


def test_the_masks_of_a_tile_are_counted_and_ordered():
    assert [len(every_tile(n, 4)) for n in (1, 2, 3)] == [24, 90, 24]
    assert list(every_tile(2, 4)) == sorted(every_tile(2, 4))


@quick
@given(st.lists(st.lists(small_numbers, min_size=4, max_size=4), min_size=4, max_size=4), st.integers(1, 3))
def test_transposable_keeps_what_the_best_of_all_tiles_keeps(tile, n):
    for solver in (by_enumeration, by_duals):
        mask = solver(torch.tensor(tile), Transposable(n, 4))
        assert mask.sum(0).tolist() == mask.sum(1).tolist() == [n] * 4
        assert worth(torch.tensor(tile)[mask].tolist()) == best_worth(tile, n)


def test_transposable_keeps_38_of_the_documentation_tile():
    tile = torch.tensor([[9.0, 1, 7, 4], [1, 2, 3, 0], [8, 3, 5, 4], [1, 2, 6, 2]])
    mask = solve(tile, Transposable(2, 4))
    assert int(tile[mask].sum()) == 38
    assert mask.int().tolist() == [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 0, 1], [0, 1, 1, 0]]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_transposable_does_not_overflow(dtype):
    tile = torch.full((4, 4), torch.finfo(dtype).max / 2, dtype=dtype)
    tile[[0, 1, 2, 3], [3, 2, 1, 0]] *= 1.5
    assert solve(tile, Transposable(1, 4)).int().tolist() == torch.eye(4).flip(1).int().tolist()


def test_transposable_solves_each_tile_alone():
    scores = seeded(2, 8, 4 * 1200).abs()
    together = solve(scores, Transposable(2, 4))
    for i, j, k in ((0, 0, 0), (1, 4, 4 * 1199), (0, 4, 4 * 700)):
        alone = solve(scores[i, j : j + 4, k : k + 4], Transposable(2, 4))
        assert torch.equal(together[i, j : j + 4, k : k + 4], alone)


@pytest.mark.parametrize("shape", [(4, 4), (8, 12), (3, 8, 4), (2, 3, 4, 8)])
@pytest.mark.parametrize("solver", [by_enumeration, by_duals])
def test_matrices_of_a_stack_are_solved_one_by_one(solver, shape, monkeypatch):
    monkeypatch.setattr(transposable_enumeration, "CPU_TILES", 2)
    pattern, scores = Transposable(2, 4), seeded(*shape)
    mask = solver(scores, pattern)
    assert mask.shape == shape
    for matrix, kept in zip(scores.reshape(-1, *shape[-2:]), mask.reshape(-1, *shape[-2:]), strict=True):
        assert torch.equal(kept, solver(matrix, pattern))


def test_transposing_the_scores_transposes_the_mask():
    scores = seeded(16, 16).abs()
    assert torch.equal(solve(scores.mT, Transposable(2, 4)), solve(scores, Transposable(2, 4)).mT)


def test_enumeration_stays_on_the_device_of_the_scores():
    for dtype in FLOATS:
        assert_stays_on_device(by_enumeration, seeded(8, 12, dtype=dtype), Transposable(2, 4))
    every_tile.cache_clear()
    transposable_enumeration._masks.cache_clear()
    with torch.device("meta"):
        mask = by_enumeration(seeded_scores := torch.eye(4, device="cpu"), Transposable(1, 4))
    assert torch.equal(mask, seeded_scores.bool())
