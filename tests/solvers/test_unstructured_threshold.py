"""Unstructured masks against the one ranking reference, wherever the bracket of a sample is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nxm_hf.patterns import Unstructured
from nxm_hf.solvers import solve, unstructured_threshold
from nxm_hf.solvers.unstructured_threshold import by_threshold, fill_by_threshold, keep_highest
from tests.support.scores import highest, scores_with_ties, seeded

torch.set_num_threads(1)

quick = settings(max_examples=150)


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


@quick
@given(st.lists(scores_with_ties, min_size=1, max_size=40), st.floats(0.01, 0.99))
def test_unstructured_keeps_the_highest_and_of_equals_the_first(values, density):
    scores, pattern = torch.tensor(values), Unstructured(density)
    assert torch.equal(solve(scores, pattern), highest(scores, pattern.kept(scores.shape)))


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
        by_torch = torch.empty(len(scores), dtype=torch.bool)
        unstructured_threshold._mark_by_topk(scores, count, by_torch)
        assert torch.equal(by_torch, expected), "as on a GPU"


class Elsewhere(torch.Tensor):
    """A tensor that says it is on a GPU. Its numbers are on the CPU, so all operations can be tried."""

    device = property(lambda self: torch.device("cuda"))


@pytest.mark.parametrize("count", [0, 1, 4, 9, 10])
def test_scores_on_another_device_have_the_mask_that_they_have_on_the_cpu(count):
    scores = torch.tensor([3.0, 1.0, 3.0, 3.0, -2.0, 0.5, 7.0, 1.0, 1.0, 3.0])
    assert torch.equal(keep_highest(scores.as_subclass(Elsewhere), count), keep_highest(scores, count))
    assert torch.equal(keep_highest(scores, count), highest(scores, count))


def test_masks_of_a_list_are_those_of_each_matrix():
    scores = [seeded(*shape, seed=number) for number, shape in enumerate([(4, 6), (2, 3, 5), (7,)])]
    masks = [torch.empty(each.shape, dtype=torch.bool) for each in scores]
    fill_by_threshold(scores, Unstructured(0.4), masks)
    for each, mask in zip(scores, masks, strict=True):
        kept = Unstructured(0.4).kept(each.shape)
        assert torch.equal(mask.flatten(), highest(each.flatten(), kept)), each.shape
        assert torch.equal(mask, by_threshold(each, Unstructured(0.4)))


@pytest.mark.parametrize("count", [-1, 0, 3, 4])
def test_none_or_all_of_a_row_are_kept(count):
    for row in (torch.tensor([1.0, -torch.inf, 0.0]), torch.tensor([], dtype=torch.float32)):
        assert keep_highest(row, count).tolist() == [count > 0] * len(row)


@quick
@given(st.integers(1, 3000), st.floats(0, 1), st.floats(0, 1))
def test_what_is_split_off_is_a_range_of_scores_in_parts_of_any_size(total, low, high):
    scores = seeded(total, seed=total).numpy()
    low, high = sorted(float(scores[int(share * (total - 1))]) for share in (low, high))
    with pytest.MonkeyPatch.context() as patch:
        for part in (7, 1000, 2**17):
            patch.setattr(unstructured_threshold, "PART", part)
            mask = torch.empty(total, dtype=torch.bool).numpy()
            inside = unstructured_threshold._split(scores, low, high, mask)
            assert (mask == (scores >= low)).all()
            assert inside.tolist() == ((scores >= low) & (scores <= high)).nonzero()[0].tolist()


def test_a_bracket_that_misses_the_threshold_is_given_up():
    """Scores that are large only where the sample does not look."""
    scores = seeded(2**17 + 99).abs()
    seen = torch.zeros(len(scores), dtype=torch.bool)
    seen[:: len(scores) // unstructured_threshold.SAMPLE | 1] = True
    scores += ~seen * 10
    order = scores.argsort(descending=True, stable=True)
    for count in (len(scores) // 2, len(scores) - int(seen.sum()) + 3):
        expected = torch.zeros(len(scores), dtype=torch.bool).index_fill_(0, order[:count], True)
        assert torch.equal(keep_highest(scores, count), expected)
    scores = seeded(2**17 + 99).abs() - seen * 10.0
    order = scores.argsort(descending=True, stable=True)
    expected = torch.zeros(len(scores), dtype=torch.bool).index_fill_(0, order[:50000], True)
    assert torch.equal(keep_highest(scores, 50000), expected)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_a_bracket_is_narrow_on_both_sides_of_the_threshold(share):
    """The mask is right for any bracket, which costs time alone where it is wide; so its width is looked at here."""
    scores = seeded(2**17).numpy()
    low, high = unstructured_threshold._bracket(scores, int(share * len(scores)))
    threshold = sorted(scores, reverse=True)[int(share * len(scores)) - 1]
    assert low <= threshold <= high
    assert ((low <= scores) & (scores < threshold)).mean() < 0.03
    assert ((threshold < scores) & (scores <= high)).mean() < 0.03


def test_a_bracket_is_open_where_the_sample_ends():
    """The smallest of a sample says nothing of what is smaller in the whole."""
    sample = torch.arange(100).numpy()
    for thousandths in range(1, 1000):
        low, high = unstructured_threshold.sample_bracket(sample, thousandths / 1000)
        assert (low is None or 0 < low < 100) and (high is None or 0 <= high < 100)
    assert unstructured_threshold.sample_bracket(sample, 0.0001)[1] is None
    assert unstructured_threshold.sample_bracket(sample, 0.9999)[0] is None
