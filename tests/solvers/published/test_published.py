"""The solvers of papers: never more than n, never more than the optimum, and what each promises beyond that."""

from itertools import permutations

import pytest
import torch

from nxm_hf.patterns import Transposable
from nxm_hf.solvers.published import PUBLISHED
from nxm_hf.solvers.transposable_duals import by_duals
from tests.support.scores import assert_stays_on_device, by_linear_programme, distributions, tiles_of

torch.set_num_threads(1)

NAMED = PUBLISHED["transposable"]
EXACT = {"exhaustive", "min-cost flow"}
FULL = EXACT | {"greedy + exchange", "entropic transport"}
KINDS = [
    "gaussian",
    "heavy tails",
    "integers",
    "mostly zero",
    "loud rows",
    "rank one",
    "bfloat16",
    "flat",
    "zero",
    "huge",
]
SIZES = [(2, 4), (1, 4), (3, 5), (4, 8), (1, 7)]
DOCUMENTED = torch.tensor([[9.0, 1, 7, 4], [1, 2, 3, 0], [8, 3, 5, 4], [1, 2, 6, 2]])
each_solver = pytest.mark.parametrize("name", NAMED)
each_size = pytest.mark.parametrize(("n", "m"), SIZES)


def asked(name, scores, n, m):
    """The mask, and what each tile keeps of its largest score; skips where the solver does not suit."""
    pattern = Transposable(n, m)
    if not NAMED[name].supports(scores, pattern):
        pytest.skip(f"{name} is not for {pattern} here")
    return tiles_of(NAMED[name](scores, pattern), m)


def scaled(scores, m):
    tiles = tiles_of(scores.double(), m)
    return tiles / tiles.amax((1, 2), keepdim=True).clamp(min=1e-300)


def sums(tiles, masks):
    return (tiles * masks).sum((1, 2))


def optimum(scores, n, m):
    return sums(scaled(scores, m), tiles_of(by_duals(scores, Transposable(n, m)), m))


@each_solver
@each_size
def test_a_named_solver_keeps_its_counts_and_no_more_than_the_optimum(name, n, m):
    for kind in KINDS:
        scores = distributions(2 * m, 2 * m)[kind]
        masks = asked(name, scores, n, m)
        best, kept = optimum(scores, n, m), sums(scaled(scores, m), masks)
        counts = torch.cat([masks.sum(1), masks.sum(2)])
        assert int(counts.max()) <= n, kind
        if name in FULL:
            assert int(counts.min()) == n and bool((kept <= best * (1 + 1e-9)).all()), kind
        assert name not in EXACT or bool((kept >= best * (1 - 1e-6)).all()), kind


@each_size
def test_what_leaves_rows_short_keeps_half_to_all_of_the_best_that_may(n, m):
    """Where n is only the most, the best mask may keep more than the best with n in each."""
    for kind in KINDS:
        scores = distributions(m, 2 * m)[kind]
        best = torch.tensor([by_linear_programme(tile, n, exactly=False) for tile in scaled(scores, m)])
        assert bool((best >= optimum(scores, n, m) - 1e-6).all()), kind
        for name in set(NAMED) - FULL:
            kept = sums(scaled(scores, m), asked(name, scores, n, m))
            assert bool((kept <= best + 1e-6).all()), kind
            assert name != "greedy" or bool((2 * kept >= best - 1e-6).all()), kind


@each_size
def test_the_2_approximation_prunes_at_most_twice_what_the_optimum_prunes(n, m):
    for kind in KINDS:
        scores = distributions(2 * m, 2 * m)[kind]
        pruned = sums(scaled(scores, m), ~asked("2-approximation", scores, n, m))
        least = scaled(scores, m).sum((1, 2)) - optimum(scores, n, m)
        assert bool((pruned <= 2 * least + 1e-9).all()), kind


# Restated entry by entry


def entries(tile):
    """The places of a tile from its heaviest entry to its lightest; of equals the first."""
    m = len(tile)
    return sorted(((i, j) for i in range(m) for j in range(m)), key=lambda place: -float(tile[place]))


@each_size
def test_the_2_approximation_is_algorithm_1(n, m):
    """From the lightest on, an entry is pruned while its row or its column may still lose one."""
    scores = distributions(2 * m, m)["gaussian"]
    for tile, mask in zip(tiles_of(scores, m), asked("2-approximation", scores, n, m), strict=True):
        rows, cols, kept = [0] * m, [0] * m, torch.ones(m, m, dtype=torch.bool)
        for i, j in reversed(entries(tile)):
            if rows[i] < m - n or cols[j] < m - n:
                kept[i, j] = False
                rows[i] += 1
                cols[j] += 1
        assert torch.equal(kept, mask)


@each_size
@pytest.mark.parametrize("kind", ["gaussian", "integers"])
def test_the_greedy_takes_the_heaviest_that_has_room(kind, n, m):
    scores = distributions(2 * m, m)[kind]
    for tile, mask in zip(tiles_of(scores, m), asked("greedy", scores, n, m), strict=True):
        rows, cols, kept = [0] * m, [0] * m, torch.zeros(m, m, dtype=torch.bool)
        for i, j in entries(tile):
            if rows[i] < n and cols[j] < n:
                kept[i, j] = True
                rows[i] += 1
                cols[j] += 1
        assert torch.equal(kept, mask)


@each_size
def test_no_exchange_of_two_for_two_is_left(n, m):
    scores = distributions(2 * m, 2 * m)["gaussian"]
    kept = sums(scaled(scores, m), asked("greedy + exchange", scores, n, m))
    assert bool((kept >= sums(scaled(scores, m), asked("greedy", scores, n, m))).all())
    for tile, mask in zip(scaled(scores, m), asked("greedy + exchange", scores, n, m), strict=True):
        for i, k in permutations(range(m), 2):
            for j, across in permutations(range(m), 2):
                if mask[i, j] and mask[k, across] and not mask[i, across] and not mask[k, j]:
                    assert tile[i, across] + tile[k, j] <= tile[i, j] + tile[k, across] + 1e-9


@pytest.mark.parametrize(("n", "m", "share"), [(2, 4, 0.999), (4, 8, 0.998), (2, 8, 0.998), (8, 16, 0.998)])
def test_transport_comes_near_the_optimum(n, m, share):
    scores = distributions(8 * m, 8 * m)["gaussian"]
    tiles, best = scaled(scores, m), optimum(scores, n, m).sum()
    kept = sums(tiles, asked("entropic transport", scores, n, m)).sum()
    assert share * best < kept and sums(tiles, asked("greedy", scores, n, m)).sum() < kept


@pytest.mark.parametrize(
    ("name", "kept"), [("exhaustive", 38), ("min-cost flow", 38), ("greedy", 38), ("2-approximation", 32)]
)
def test_the_documentation_tile(name, kept):
    assert int(DOCUMENTED[asked(name, DOCUMENTED, 2, 4)[0]].sum()) == kept


@each_solver
@each_size
def test_a_tile_alone_is_solved_as_among_others(name, n, m):
    for kind in ("gaussian", "integers", "flat"):
        scores = distributions(2 * m, 2 * m)[kind]
        for tile, mask in zip(tiles_of(scores, m), asked(name, scores, n, m), strict=True):
            assert torch.equal(asked(name, tile, n, m)[0], mask)


@each_solver
def test_a_named_solver_takes_stacks_strips_and_infinities(name):
    scores = torch.rand(3, 8, 12, generator=torch.Generator().manual_seed(0))
    scores[0, 1, 5] = scores[2, 7, 11] = torch.inf
    mask = NAMED[name](scores.mT.contiguous().mT, Transposable(2, 4))
    assert torch.equal(mask[1], NAMED[name](scores[1], Transposable(2, 4)))
    assert mask[0, 1, 5] and mask[2, 7, 11]


def test_flow_without_scipy_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match="pip install scipy"):
        NAMED["min-cost flow"](DOCUMENTED, Transposable(2, 4))


@pytest.mark.parametrize("name", PUBLISHED["transposable"])
def test_published_solvers_stay_on_the_device_of_the_scores(name):
    pattern, solver = Transposable(2, 4), PUBLISHED["transposable"][name]
    for scores in (*distributions(8, 12).values(), torch.ones(8, 8)):
        if solver.supports(scores, pattern):
            assert_stays_on_device(solver, scores, pattern)
