"""Counting wins: of equal scores the first is kept, by NumPy and by torch. More laws are in `test_nm_sort.py`."""

import pytest
import torch

from nxm_hf.patterns import NM
from nxm_hf.solvers import nm_counting
from nxm_hf.solvers.nm_counting import by_counting, counting_supports
from tests.support.references import top
from tests.support.scores import FLOATS, assert_stays_on_device, seeded

torch.set_num_threads(1)

COUNTS = [(1, 2), (1, 4), (2, 4), (3, 4)]


def by_torch(scores, pattern):
    """The mask as a GPU computes it, where torch does the comparisons."""
    mask, outcomes = torch.empty(len(scores), dtype=torch.bool), torch.empty(1, dtype=torch.int64)
    nm_counting._mark(torch, scores, mask.view(torch.int64), outcomes, outcomes.view(torch.bool), pattern)
    return mask


@pytest.mark.parametrize(("n", "m"), COUNTS)
def test_of_equal_scores_the_first_is_kept(n, m):
    first = torch.arange(16) % m < n
    for scores in (torch.zeros(16), torch.full((16,), -torch.inf), torch.tensor([0.0, -0.0] * 8)):
        assert torch.equal(by_counting(scores, NM(n, m)), first) and torch.equal(by_torch(scores, NM(n, m)), first)


@pytest.mark.parametrize(("n", "m"), COUNTS)
def test_torch_counts_as_numpy_does(n, m):
    for scores in (seeded(48), (seeded(48, seed=1) * 2).round()):
        assert torch.equal(by_torch(scores, NM(n, m)), by_counting(scores, NM(n, m)))
        assert torch.equal(by_torch(scores, NM(n, m)), top(scores, NM(n, m)))


def test_counting_supports_groups_that_fill_its_integers():
    supported = {m: counting_supports(torch.ones(48), NM(1, m)) for m in (2, 3, 4, 8)}
    assert supported == {2: True, 3: False, 4: True, 8: False}
    assert not counting_supports(torch.ones(44), NM(1, 4))


def test_parts_of_a_row_are_whole_integers_and_make_no_difference(monkeypatch):
    assert nm_counting.CPU_SCORES % nm_counting.BYTES == nm_counting.GPU_SCORES % nm_counting.BYTES == 0
    for part in (8, 24, 96):
        monkeypatch.setattr(nm_counting, "CPU_SCORES", part)
        assert torch.equal(by_counting(seeded(96), NM(2, 4)), top(seeded(96), NM(2, 4)))


def test_counting_stays_on_the_device_of_the_scores():
    for dtype in FLOATS:
        assert_stays_on_device(by_counting, seeded(6, 16, dtype=dtype), NM(2, 4))
