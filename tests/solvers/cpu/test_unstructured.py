"""The kernels for the highest of a row: the mask of torch, whatever the sample says, and wherever entries stand."""

import sys
import tracemalloc

import pytest
import torch

from nxm_hf.patterns import parse
from nxm_hf.solvers import cpu, solve
from tests.support.cpu_kernels import INF, in_torch

pytest.importorskip("numba", reason="the kernels for CPUs need numba")
torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("kernels_for_every_size")


def highest(scores, count, magnitudes=False):
    """Return what the kernels return, and their mask, which begins at an odd address."""
    mask = torch.ones(len(scores) + 1, dtype=torch.bool)[1:]
    return cpu.BACKEND.kernels.highest_of_row(scores, count, mask, magnitudes), mask


def first_of_a_sort(scores, count):
    return torch.zeros(len(scores), dtype=torch.bool).index_fill_(
        0, scores.sort(descending=True, stable=True).indices[:count], True
    )


def unstructured():
    assert cpu.BACKEND.kernels
    return sys.modules["nxm_hf.solvers.cpu.unstructured"]


@pytest.mark.parametrize("size", [1, 15, 16, 17, 4095, 70001])
@pytest.mark.parametrize("kind", ["gaussian", "two values", "sorted", "one value"])
def test_unstructured_masks_of_any_length_and_of_misleading_samples(size, kind):
    scores = torch.randn(size, generator=torch.Generator().manual_seed(size))
    scores = {"two values": scores.sign(), "sorted": scores.sort()[0], "one value": scores * 0}.get(kind, scores)
    scores[::17] = 9.0  # near what the sample takes
    for density in (0.01, 0.5, 0.97):
        pattern = parse(f"unstructured:{density}")
        assert torch.equal(solve(scores, pattern), in_torch(lambda pattern=pattern: solve(scores, pattern)))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
@pytest.mark.parametrize("magnitudes", [False, True])
def test_a_bracket_of_keys_is_narrow_on_both_sides_of_the_threshold(share, magnitudes):
    """The mask is right for any bracket, which costs time alone where it is wide or misses; so it is looked at here."""
    module = unstructured()
    scores = torch.randn(2**18 + 7, generator=torch.Generator().manual_seed(0))
    readable = module.MAGNITUDE if magnitudes else module.ALL_BITS
    keys = (scores.abs() if magnitudes else scores).sort(descending=True)[0]
    count = int(share * len(scores))
    low, high = (
        float(module._float(key)) for key in module._bracket(scores.view(torch.int32).numpy(), count, readable)
    )
    assert low <= float(keys[count - 1]) <= high
    assert int(((low <= keys) & (keys <= high)).sum()) < 0.08 * len(keys)


@pytest.mark.parametrize("magnitudes", [False, True])
@pytest.mark.parametrize("count", [20, 256, 480])
@pytest.mark.parametrize("end", [0, 1])
def test_an_end_of_the_bracket_may_stand_in_the_rest_of_the_row_that_fills_no_vector(magnitudes, count, end):
    """So may the entries beside it. All entries are the sample here, so that their order makes no difference to it."""
    module, scores = unstructured(), torch.randn(496 + 15 + 1, generator=torch.Generator().manual_seed(count))[1:]
    readable = module.MAGNITUDE if magnitudes else module.ALL_BITS
    key = module._bracket(scores.view(torch.int32).numpy(), count, readable)[end]
    ranks = (scores.abs() if magnitudes else scores).argsort()
    place = int(((scores.abs() if magnitudes else scores)[ranks] == float(module._float(key))).nonzero())
    for first in range(max(place - 15, 0), min(place, 496) + 1):
        beside = ranks[first : first + 15]
        others = torch.ones(511, dtype=torch.bool).index_fill_(0, beside, False)
        row = torch.cat([scores[others], scores[beside]])
        found, mask = highest(row, count, magnitudes)
        assert found == 0 and torch.equal(mask, first_of_a_sort(row.abs() if magnitudes else row, count))


@pytest.mark.parametrize("pieces", [1, 4])
@pytest.mark.parametrize("magnitudes", [False, True])
def test_infinities_are_numbers_and_a_nan_is_refused_in_any_piece_and_in_the_rest(pieces, magnitudes, monkeypatch):
    monkeypatch.setattr(sys.modules["nxm_hf.solvers.cpu.threads"], "PIECE", 1024 // pieces)
    for place in (0, 255, 256, 1000, 1023, 1024, 1026):
        scores = torch.randn(1027, generator=torch.Generator().manual_seed(place))
        for number in (INF, -INF):
            scores[place] = number
            found, mask = highest(scores, 400, magnitudes)
            assert found == 0 and torch.equal(mask, first_of_a_sort(scores.abs() if magnitudes else scores, 400))
        scores[place] = torch.nan
        assert highest(scores, 400, magnitudes)[0] == -1


def test_a_sample_misleads_nobody_that_has_just_as_many_entries_above_its_bracket_as_are_kept():
    module, scores, count = unstructured(), torch.full((70001,), -9.0), 35000
    scores[::17] = torch.linspace(-1, 1, 4118)  # the sample
    key = module._bracket(scores.view(torch.int32).numpy(), count, module.ALL_BITS)[1]
    missing = count - int((scores > float(module._float(key))).sum())
    scores[(scores == -9.0).nonzero()[:missing, 0]] = 9.0
    assert (scores > float(module._float(key))).sum() == count
    assert torch.equal(highest(scores, count)[1], first_of_a_sort(scores, count))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
@pytest.mark.parametrize("magnitudes", [False, True])
def test_a_row_is_not_copied_once_more_if_its_sample_tells_where_to_look(share, magnitudes):
    """There is room for all of its entries, of which few are written, and no other memory of that size."""
    scores = torch.randn(2**18 + 7, generator=torch.Generator().manual_seed(0))
    highest(scores, 1, magnitudes)
    tracemalloc.start()
    try:
        found, mask = highest(scores, int(share * len(scores)), magnitudes)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == 0 and mask.sum() == int(share * len(scores))
    assert peak < 1.5 * scores.nbytes
