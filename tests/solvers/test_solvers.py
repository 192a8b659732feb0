"""Solvers against references written another way, on scores full of ties, zeros and extremes."""

from itertools import combinations, permutations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nxm_hf.patterns import NM, PATTERNS, Block, Transposable, Unstructured, parse
from nxm_hf.solvers import SOLVERS, Solver, choose, solve, solve_many, unstructured_threshold
from nxm_hf.solvers.comparator_network import network
from nxm_hf.solvers.nm_counting import by_counting, counting_supports
from nxm_hf.solvers.nm_network import CPU_BYTES, by_network
from nxm_hf.solvers.nm_sort import by_sorting
from nxm_hf.solvers.transposable_duals import by_duals
from nxm_hf.solvers.transposable_enumeration import by_enumeration, every_tile
from nxm_hf.solvers.unstructured_threshold import keep_highest

torch.set_num_threads(1)

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
EXTREMES = [0.0, -0.0, 1.0, -1.0, 2.0, 3.0, 1e-45, 1e-40, 3e38, float("inf"), float("-inf")]
quick = settings(max_examples=150)
scores_with_ties = st.sampled_from(EXTREMES) | st.integers(-2, 2).map(float) | st.floats(width=32, allow_nan=False)


def ranked(scores, n):
    """The reference for one group: a score is kept where fewer than n others beat it, earlier ones on equality."""
    beaten_by = [sum(b > a or (b == a and j < i) for j, b in enumerate(scores)) for i, a in enumerate(scores)]
    return [beaten < n for beaten in beaten_by]


def by_hand(scores, n, m):
    rows = scores.reshape(-1, m).tolist()
    return torch.tensor([ranked(row, n) for row in rows]).view(scores.shape)


def plain_solvers(scores, pattern):
    """The solvers of N:M that suit."""
    return [by_counting, by_network, by_sorting] if counting_supports(scores, pattern) else [by_network, by_sorting]


def seeded(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_every_pattern_has_a_solver():
    assert set(SOLVERS) == {kind.kind for kind in PATTERNS}
    assert all(SOLVERS.values()) and sum(map(len, SOLVERS.values())) >= 6


# The choice


def test_the_first_solver_that_suits_is_asked(monkeypatch):
    def refuse(scores, pattern):
        raise AssertionError("asked, though it does not suit")

    picky = Solver(refuse, supports=lambda scores, pattern: scores.dtype == torch.float64)
    monkeypatch.setitem(SOLVERS, "nm", (picky, *SOLVERS["nm"]))
    assert choose(torch.ones(4).double(), NM(1, 4)) is picky
    assert solve(torch.ones(4), NM(1, 4)).tolist() == [True, False, False, False]


@pytest.mark.parametrize("text", [text for kind in PATTERNS for text in kind.examples])
@pytest.mark.parametrize("bring", [False, True])
def test_a_list_gets_the_masks_of_its_tensors(text, bring):
    pattern = parse(text)
    scores = [seeded(40, 120).abs(), seeded(0, 120), seeded(2, 80, 120, seed=1), seeded(120, 120, seed=2).mT]
    scores += [seeded(40, 240, seed=3)[:, ::2].bfloat16(), seeded(40, 120, dtype=torch.float64)]
    out = [torch.empty(each.shape, dtype=torch.bool) for each in scores] if bring else None
    masks = solve_many(scores, pattern, out)
    for each, mask in zip(scores, masks, strict=True):
        assert torch.equal(mask, pattern.mask(each))
    assert not bring or all(mask is given for mask, given in zip(masks, out, strict=True))


def test_a_solver_of_lists_gets_all_that_it_suits_at_once(monkeypatch):
    asked = []

    def many(scores, pattern, masks):
        asked.append(len(scores))
        for each, mask in zip(scores, masks, strict=True):
            mask.copy_(by_network(each, pattern))

    monkeypatch.setitem(SOLVERS, "nm", (Solver(by_network, lambda scores, _: scores.dim() == 2, many), *SOLVERS["nm"]))
    scores = [seeded(4, 8), seeded(8), seeded(2, 4), seeded(0, 4)]
    for each, mask in zip(scores, solve_many(scores, NM(2, 4)), strict=True):
        assert torch.equal(mask, NM(2, 4).mask(each))
    assert asked == [2]


@pytest.mark.parametrize(
    "out",
    [
        [torch.empty(4)],
        [torch.empty(8, dtype=torch.bool)],
        [torch.empty(8, dtype=torch.bool)[::2]],
        [torch.empty(4, dtype=torch.bool, device="meta")],
    ],
)
def test_masks_that_do_not_fit_are_refused(out):
    with pytest.raises(ValueError, match=r"contiguous bool of their shape and device.*Write torch.empty"):
        solve_many([torch.ones(4)], NM(2, 4), out)
    with pytest.raises(ValueError, match="2 tensors of scores and 1 in out"):
        solve_many([torch.ones(4)] * 2, NM(2, 4), out)


# N:M


@st.composite
def groups(draw):
    m = draw(st.integers(2, 12) | st.sampled_from([13, 16, 31, 32, 33, 37, 64, 127, 256]))
    n = draw(st.integers(1, m - 1))
    count = draw(st.integers(1, 3))
    values = draw(st.lists(scores_with_ties, min_size=m, max_size=m))
    rolled = [values[i:] + values[:i] for i in range(count)]
    return n, m, torch.tensor(rolled)


@quick
@given(groups())
def test_nm_solvers_give_the_mask_of_rank_counting(case):
    n, m, scores = case
    expected = by_hand(scores, n, m)
    for solver in plain_solvers(scores, NM(n, m)):
        assert torch.equal(solver(scores, NM(n, m)), expected), solver.__name__


@pytest.mark.parametrize("m", [2, 3, 4, 5, 7, 8])
def test_all_zeros_and_ones_are_masked_right(m):
    """The zero-one principle: a network that is right for every 0/1 input is right for every input."""
    scores = torch.tensor(list(product([0.0, 1.0], repeat=m)))
    for n in range(1, m):
        for solver in plain_solvers(scores, NM(n, m)):
            assert torch.equal(solver(scores, NM(n, m)), by_hand(scores, n, m))


def test_the_network_leaves_out_what_its_answer_does_not_need():
    halves = {(n, m): sum(a + b for *_, a, b in network((n - 1,), m)) for n, m in ((1, 4), (2, 4), (4, 8))}
    assert halves == {(1, 4): 3, (2, 4): 7, (4, 8): 27}


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8], ids=str)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (3, 5), (20, 40)])
def test_nm_solvers_agree_on_every_dtype(n, m, dtype):
    for scale in (1, 50):
        scores = (seeded(60, 80) * scale).abs().to(dtype)
        *masks, sorted_mask = (solver(scores, NM(n, m)) for solver in plain_solvers(scores, NM(n, m)))
        assert all(torch.equal(mask, sorted_mask) for mask in masks)
        assert bool((sorted_mask.view(-1, m).sum(1) == n).all())


def test_nm_solvers_agree_on_masks_and_on_numbers_that_fp32_cannot_hold():
    large = torch.tensor([2**60, 2**60 + 1, 2**60 - 1, 2**60 + 2])
    for scores in (large, 1 + torch.arange(4).double() * 2.0**-50, torch.tensor([False, True, False, False])):
        scores = scores.repeat(2)
        for solver in (by_counting, by_network, by_sorting):
            assert torch.equal(solver(scores, NM(1, 4)), by_hand(scores, 1, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_solvers_are_right_across_the_parts_they_work_in(dtype):
    """Several parts, a last one that is short, and ties in some groups of each."""
    total = (5 * CPU_BYTES // 2 // dtype.itemsize // 4 + 2) * 4
    scores = seeded(total, dtype=dtype).abs()
    scores[:: total // 50] = 0.5
    scores[1 :: total // 50] = 0.5
    *masks, sorted_mask = (solver(scores, NM(1, 4)) for solver in plain_solvers(scores, NM(1, 4)))
    assert len(masks) == 2 and all(torch.equal(mask, sorted_mask) for mask in masks)


# Transposable


def worth(kept):
    """How a set of kept scores compares: first its infinities, then the sum of the rest."""
    infinite = sum((x == float("inf")) - (x == float("-inf")) for x in kept)
    return infinite, sum(x for x in kept if abs(x) != float("inf"))


def best_worth(tile, n):
    """The reference: masks as unions of n disjoint permutations; by Koenig's theorem there are no others."""
    unions = ({(i, line[i]) for line in lines for i in range(4)} for lines in combinations(permutations(range(4)), n))
    return max(worth([tile[i][j] for i, j in cells]) for cells in unions if len(cells) == 4 * n)


def test_the_masks_of_a_tile_are_counted_and_ordered():
    assert [len(every_tile(n, 4)) for n in (1, 2, 3)] == [24, 90, 24]
    assert list(every_tile(2, 4)) == sorted(every_tile(2, 4))


small_numbers = st.integers(-3, 9).map(float) | st.sampled_from([0.5, 0.0, float("inf"), float("-inf")])


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


def test_transposing_the_scores_transposes_the_mask():
    scores = seeded(16, 16).abs()
    assert torch.equal(solve(scores.mT, Transposable(2, 4)), solve(scores, Transposable(2, 4)).mT)


# Unstructured and blocks


@quick
@given(st.lists(scores_with_ties, min_size=1, max_size=40), st.floats(0.01, 0.99))
def test_unstructured_keeps_the_highest_and_of_equals_the_first(values, density):
    scores, pattern = torch.tensor(values), Unstructured(density)
    assert solve(scores, pattern).tolist() == ranked(scores.tolist(), pattern.kept(scores.shape))


@quick
@given(st.integers(1, 3), st.integers(1, 3), st.data())
def test_blocks_keep_the_highest_and_of_equals_the_first(rows, cols, data):
    high, wide = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    count = high * rows * wide * cols
    scores = torch.tensor(data.draw(st.lists(scores_with_ties, min_size=count, max_size=count)))
    scores = scores.view(high * rows, wide * cols)
    pattern = Block(rows, cols, data.draw(st.floats(0.01, 0.99)))
    corners = [(i * rows, j * cols) for i in range(high) for j in range(wide)]
    maxima = [float(scores[i : i + rows, j : j + cols].max()) for i, j in corners]
    kept = ranked(maxima, pattern.kept(scores.shape) // (rows * cols))
    mask = solve(scores, pattern)
    for (i, j), keep in zip(corners, kept, strict=True):
        assert bool((mask[i : i + rows, j : j + cols] == keep).all())


@pytest.mark.parametrize("text", [text for kind in PATTERNS for text in kind.examples])
def test_solvers_leave_the_random_generator_alone(text):
    before = torch.random.get_rng_state()
    solve(torch.ones(40, 120), parse(text))
    assert torch.equal(torch.random.get_rng_state(), before)


def scores_in_order_of_size(kind, total):
    rising = torch.arange(total).float()
    return {
        "gaussian": seeded(total),
        "half zero": seeded(total).relu(),
        "flat": torch.ones(total),
        "rising": rising,
        "falling": -rising,
        "columns": rising % 64,  # a sample that follows columns would see one of them
        "few giants": torch.where(rising < 5, 1e9 + rising, seeded(total)),
        "integers": (seeded(total) * 3).long(),
        "bfloat16": seeded(total, dtype=torch.bfloat16),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["gaussian", "half zero", "flat", "rising", "falling", "columns", "few giants", "integers", "bfloat16"],
)
def test_unstructured_is_right_where_a_sample_brackets_the_threshold_and_where_it_misses(kind):
    scores = scores_in_order_of_size(kind, 2**17 + 77)
    order = (scores + 0).argsort(descending=True, stable=True)
    for count in (1, 5, 1000, len(scores) // 2, len(scores) - 3):
        expected = torch.zeros(len(scores), dtype=torch.bool).index_fill_(0, order[:count], True)
        assert torch.equal(keep_highest(scores, count), expected), count


def test_a_bracket_that_misses_the_threshold_is_given_up():
    """Scores that are large only where the sample does not look."""
    scores = seeded(2**17).abs()
    seen = torch.zeros(len(scores), dtype=torch.bool)
    seen[:: len(scores) // unstructured_threshold.SAMPLE | 1] = True
    scores += ~seen * 10
    order = scores.argsort(descending=True, stable=True)
    for count in (len(scores) // 2, len(scores) - int(seen.sum()) + 3):
        expected = torch.zeros(len(scores), dtype=torch.bool).index_fill_(0, order[:count], True)
        assert torch.equal(keep_highest(scores, count), expected)
    scores = seeded(2**17).abs() - seen * 10.0
    order = scores.argsort(descending=True, stable=True)
    expected = torch.zeros(len(scores), dtype=torch.bool).index_fill_(0, order[:50000], True)
    assert torch.equal(keep_highest(scores, 50000), expected)
