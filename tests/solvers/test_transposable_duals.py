"""Transposable masks of every size against a dynamic programme and a linear programme, on scores of every shape."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nxm_hf.patterns import Transposable, parse
from nxm_hf.solvers import SOLVERS, solve, transposable_duals
from nxm_hf.solvers.transposable_duals import by_duals
from nxm_hf.solvers.transposable_paths import balance_rows
from nxm_hf.solvers.transposable_tiles import quantized, tiles
from tests.support.scores import (
    INF,
    assert_holds,
    assert_stays_on_device,
    by_columns_filled,
    by_linear_programme,
    distributions,
    generator,
    seeded,
    tiles_of,
    worth,
)

torch.set_num_threads(1)

quick = settings(max_examples=80)
SIZES = [(1, 2), (2, 3), (3, 5), (2, 7), (4, 8), (1, 8), (7, 8), (8, 16), (5, 23), (16, 32), (31, 32)]
each_size = pytest.mark.parametrize(("n", "m"), SIZES)


def solvers_for(scores, pattern):
    found = [solver for solver in SOLVERS["transposable"] if solver.supports(scores, pattern)]
    assert found
    return found


# Exactness


numbers = st.integers(-3, 9).map(float) | st.sampled_from([0.5, 0.0, -0.0, 2.0**20, INF, INF, -INF])


@st.composite
def small_tiles(draw):
    m = draw(st.integers(2, 5))
    n = draw(st.integers(1, m - 1))
    values = draw(st.lists(numbers, min_size=m * m, max_size=m * m))
    return n, torch.tensor(values).view(m, m)


@quick
@given(small_tiles())
def test_a_small_tile_keeps_as_much_as_any_mask(case):
    n, tile = case
    pattern = Transposable(n, len(tile))
    for solver in solvers_for(tile, pattern):
        mask = solver(tile, pattern)
        assert_holds(mask, n, len(tile))
        assert worth(tile[mask].tolist()) == by_columns_filled(tile.tolist(), n), solver.__name__


@pytest.mark.parametrize("m", range(2, 33))
def test_scores_become_integers_of_24_bits_that_a_path_can_add_up(m):
    """A path adds up m of them at most, and stays below a quarter of the largest integer."""
    scores = seeded(m, m).abs()[..., None]
    q, wide = quantized(scores)
    assert not wide.any() and 2**24 <= q.max() and m * q.max() <= 2**29
    assert torch.equal(q, (scores / scores.max() * q.max()).round().int())


@pytest.mark.parametrize(("most", "parts"), [(1, 60), (3, 24), (9, 12), (10, 6), (29, 3), (60, 1), (99, 1)])
def test_parts_are_views_of_at_most_so_many_tiles_in_their_order(most, parts):
    scores = torch.arange(24.0 * 40).view(24, 40)  # six strips of ten tiles
    found = [*tiles(scores, 4, most)]
    assert len(found) == parts and all(part[0, 0].numel() <= most for part in found)
    assert torch.equal(torch.cat([part.flatten(2) for part in found], 2), tiles_of(scores, 4).permute(1, 2, 0))
    for part in found:
        part.zero_()
    assert not scores.any()


@settings(max_examples=30)
@given(st.integers(2, 5), st.data())
def test_rows_are_balanced_at_the_least_loss_and_nothing_that_was_given_changes(m, data):
    """From masks with the best n of each column, whose rows may have none or all."""
    n = data.draw(st.integers(1, m - 1))
    values = data.draw(st.lists(st.integers(-9, 9), min_size=3 * m * m, max_size=3 * m * m))
    q = torch.tensor(values, dtype=torch.int32).view(m, m, 3)
    q[..., 2] = torch.eye(m, dtype=torch.int32)  # settled from the beginning if n is 1
    kept = torch.zeros_like(q, dtype=torch.bool).scatter_(0, q.topk(n, dim=0).indices, True)
    given_q, given_kept = q.clone(), kept.clone()
    mask = balance_rows(q, kept, n)
    assert torch.equal(q, given_q) and torch.equal(kept, given_kept)
    for tile, best in zip(q.unbind(2), mask.unbind(2), strict=True):
        assert_holds(best, n, m)
        assert worth(tile[best].tolist()) == by_columns_filled(tile.tolist(), n)


@each_size
def test_a_large_tile_keeps_as_much_as_the_linear_programme(n, m):
    for name, scores in distributions(m, 2 * m).items():
        mask = by_duals(scores, Transposable(n, m))
        assert_holds(mask, n, m)
        for tile, kept in zip(tiles_of(scores.double(), m), tiles_of(mask, m), strict=True):
            tile = tile / (tile.abs().max() or 1)
            best = by_linear_programme(tile, n)
            assert float(tile[kept].sum()) >= best - 1e-6 * abs(best), name


@each_size
def test_the_mask_of_the_transpose_keeps_as_much(n, m):
    for name, scores in distributions(2 * m, m).items():
        straight, turned = (solve(each, Transposable(n, m)) for each in (scores, scores.mT))
        kept, kept_turned = scores.double()[straight].sum(), scores.double()[turned.mT].sum()
        assert kept_turned == pytest.approx(float(kept), rel=2e-6), name


@each_size
def test_as_many_infinities_stay_as_can(n, m):
    """More of them than fit; and of what else fits, the most."""
    scores = torch.rand(m, m, generator=generator())
    infinite = torch.rand(m, m, generator=generator(2)) < 0.8
    mask = solve(scores.masked_fill(infinite, INF), Transposable(n, m))
    most = by_linear_programme(infinite.double(), n)
    assert int(infinite[mask].sum()) == round(most)
    both = by_linear_programme(infinite.double() * 2 * m * m + scores.double() * ~infinite, n)
    assert float(scores[mask & ~infinite].double().sum()) == pytest.approx(both - 2 * m * m * round(most), abs=1e-5)


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**-20, 2.0**100])
@each_size
def test_beside_infinities_the_scale_of_the_others_makes_no_difference(n, m, scale):
    scores = torch.rand(2 * m, m, generator=generator())
    infinite = torch.rand(2 * m, m, generator=generator(2)) < 0.2
    first, other = ((scores * factor).masked_fill(infinite, INF) for factor in (1.0, scale))
    assert torch.equal(by_duals(other, Transposable(n, m)), by_duals(first, Transposable(n, m)))


def test_what_stands_beside_a_giant_is_still_told_apart():
    """Rounding all to parts of the largest would leave nothing of the others."""
    small = torch.rand(32, 32, generator=generator()).double()
    scores = small * 1e-8
    scores[3, 4] = 1
    mask = by_duals(scores, Transposable(16, 32))
    small[3, 4] = 1e3
    assert mask[3, 4] and float(small[mask].sum()) == pytest.approx(by_linear_programme(small, 16), abs=0.01)


def test_one_swap_too_many_is_not_made():
    scores = torch.tensor([[3.0, 2, 0], [2, 2, 1], [0, 1, 1]])
    assert solve(scores, Transposable(1, 3)).int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


# The same, however it is worked out


@pytest.mark.parametrize("kind", ["gaussian", "integers", "mostly zero", "loud rows", "signed"])
@pytest.mark.parametrize(("n", "m"), [(3, 5), (4, 8), (8, 16)])
def test_neither_parts_nor_neighbours_matter(n, m, kind, monkeypatch):
    scores, pattern = distributions(4 * m, 3 * m)[kind], Transposable(n, m)
    whole = by_duals(scores, pattern)
    alone = by_duals(scores[m : 2 * m, 2 * m :].contiguous(), pattern)
    assert torch.equal(alone, whole[m : 2 * m, 2 * m :])
    for size in (1, 5 * m * m):
        monkeypatch.setattr(transposable_duals, "CPU_SCORES", size)
        assert torch.equal(by_duals(scores, pattern), whole)


def test_scores_may_lie_in_memory_in_any_way():
    """Also a stack whose matrices do not follow each other."""
    pattern, given = Transposable(3, 6), torch.randn(2, 24, 24, generator=generator()).abs()
    for scores in (given.mT, given[:, :12], given[..., ::2], given[0].T, given[:1, :6].expand(2, 6, 24)):
        copied = torch.empty(scores.shape).copy_(scores)
        assert not scores.is_contiguous() and torch.equal(by_duals(scores, pattern), by_duals(copied, pattern))


def test_threads_make_no_difference():
    scores = torch.randn(512, 512, generator=generator()).abs()
    one = by_duals(scores, parse("4:8-transposable"))
    torch.set_num_threads(2)
    try:
        assert torch.equal(by_duals(scores, parse("4:8-transposable")), one)
    finally:
        torch.set_num_threads(1)


@each_size
def test_what_holds_the_pattern_is_kept_as_it_is(n, m):
    weight = torch.randn(2 * m, m, generator=generator())
    mask = solve(weight.abs(), Transposable(n, m))
    assert torch.equal(solve((weight * mask).abs(), Transposable(n, m)), mask)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 8), (1, 16)])
def test_prices_and_paths_stay_on_the_device_of_the_scores(n, m):
    """Integers are full of ties, so that some tiles need paths."""
    for scores in (seeded(2 * m, 3 * m), (2 * seeded(2 * m, 3 * m)).round()):
        assert_stays_on_device(by_duals, scores, Transposable(n, m))
