"""The learning correlation, offline and streaming, against its definition."""

from itertools import product

import pytest
import torch

from nxm_hf import analysis
from tests.support.series import naive, some_series, stream

SERIES = torch.tensor([0.0, 1, 2, 3, 2, 1, 0, -1, -2, -3, -2, -1])
RHO = [1, 0.85446, 0.560779, 0.237171, -0.130744, -0.636285, -1, -0.419314, 0.632456]


def test_the_worked_vector():
    found = analysis.learning_correlation(SERIES)
    assert found.delta.shape == () and found.delta.item() == pytest.approx(0.331330, abs=1e-6)
    assert found.delta.item() * 11 == pytest.approx(3.644635, abs=1e-6)
    assert analysis.autocorrelation(SERIES, range(9)).tolist() == pytest.approx(RHO, abs=1e-6)
    assert stream(SERIES, range(1, 5)).result().delta.item() == pytest.approx(0.331330, abs=1e-6)


def test_all_lags_at_once_agree_with_the_correlation_of_torch():
    series = some_series().view(60, -1)
    ours = analysis.autocorrelation(series, range(1, 53))
    for column in (0, 4, 7):
        x = series[:, column].double()
        theirs = [torch.corrcoef(torch.stack([x[:-lag], x[lag:]]))[0, 1].item() for lag in range(1, 53)]
        assert ours[:, column].tolist() == pytest.approx(theirs, abs=1e-10)


@pytest.mark.parametrize("lags", [None, [1, 2, 4, 8, 16, 32], [50, 3, 7]], ids=["all", "doubling", "some"])
def test_offline_and_streaming_equal_the_definition(lags):
    series = some_series()
    offline = analysis.learning_correlation(series, lags=lags)
    streamed = stream(series, lags or range(1, 60)).result()
    for place in product(range(3), range(4)):
        if place == (2, 2):
            continue  # the pruned weight; it has a test of its own
        right = naive(series[(slice(None), *place)].tolist(), sorted(lags) if lags else None)
        assert offline.delta[place].item() == pytest.approx(right, abs=1e-9, nan_ok=True)
    assert torch.allclose(offline.delta, streamed.delta, rtol=0, atol=1e-9, equal_nan=True)


def test_small_and_large_weights_are_told_apart_in_bins_of_equal_size():
    """Figure 1 of Stosic and Stosic, in plain loops; a weight without a correlation counts in its bin's magnitude."""
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    delta = torch.rand(5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    delta[2, 3] = float("nan")
    pairs = sorted(zip(weight.abs().flatten().tolist(), delta.flatten().tolist(), strict=True))
    sizes, found = [9, 9, 9, 8], analysis.Learning(delta).by_magnitude(weight, bins=4)
    for (magnitude, median), size in zip(found, sizes, strict=True):
        part, pairs = pairs[:size], pairs[size:]
        values = sorted(value for _, value in part if value == value)
        assert magnitude == pytest.approx(sum(w for w, _ in part) / size)
        assert median == values[round((len(values) - 1) / 2)]
    assert len(analysis.Learning(delta).by_magnitude(weight, bins=50)) == 35
    with pytest.raises(ValueError, match=r"shape \(7,\) but a snapshot has \(5, 7\)"):
        analysis.Learning(delta).by_magnitude(weight[0])


def test_more_series_than_a_chunk_and_a_list_of_snapshots_are_the_same():
    walk = torch.randn(20, 2100).cumsum(0)
    whole = analysis.learning_correlation(walk).delta
    parts = [analysis.learning_correlation(part).delta for part in walk.split(300, dim=1)]
    assert torch.allclose(whole, torch.cat(parts), rtol=0, atol=1e-12)
    assert torch.equal(analysis.learning_correlation(list(walk)).delta, whole)


def test_constants_and_numbers_that_are_none_are_left_out_and_counted():
    series = torch.randn(30, 5)
    series[:, 1], series[7, 2] = 0.1, torch.nan
    for found in (analysis.learning_correlation(series), stream(series, range(1, 30)).result()):
        assert found.delta.isnan().tolist() == [False, True, True, False, False] and found.undefined == 2
        assert 0 < found.median < 1


def test_a_weight_that_stays_where_it_was_pruned_is_no_error():
    series = some_series()[:, 2, 2]
    for found in (analysis.learning_correlation(series), stream(series, range(1, 60)).result()):
        assert 0 < found.delta <= 1


def test_what_never_crosses_is_censored_and_its_share_reported():
    rise = torch.arange(40.0)
    found = analysis.learning_correlation(torch.stack([rise, rise * 2 + 1, torch.randn(40), torch.ones(40)], 1))
    assert found.delta[:2].tolist() == [1, 1] and found.delta[2] < 1
    assert found.censored == pytest.approx(2 / 3)


def test_a_mask_tells_kept_from_pruned():
    series = torch.cat([torch.arange(40.0)[:, None].expand(40, 3), torch.randn(40, 50)], 1)
    mask = torch.arange(53) < 3
    found = analysis.learning_correlation(series, mask)
    assert found.kept == 1 and found.pruned < 0.1
    assert stream(series, range(1, 40)).result(mask).kept == 1
    with pytest.raises(ValueError, match="Give mask="):
        _ = analysis.learning_correlation(series).kept
    with pytest.raises(ValueError, match=r"the shape \(2,\)"):
        analysis.learning_correlation(series, mask[:2])


def test_the_null_models_are_those_of_the_specification():
    null = analysis.random_walk_null(400)
    assert null.median == pytest.approx(0.285, abs=0.02)
    assert null.quantile(0.25) == pytest.approx(0.18, abs=0.02) and null.quantile(0.75) == pytest.approx(0.56, abs=0.03)
    assert analysis.learning_correlation(torch.randn(400, 2000)).median == pytest.approx(0.0025, abs=1e-4)
    approach = torch.exp(-torch.arange(400.0) / 400)[:, None] + 1e-3 * torch.randn(400, 200)
    assert analysis.learning_correlation(approach).median > 0.9  # one e-folding: it never turns round


def test_the_null_is_the_same_for_the_same_seed_and_touches_no_chance_of_others():
    before = torch.get_rng_state()
    one, same, other = (analysis.random_walk_null(50, 20, seed).delta for seed in (3, 3, 4))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_lags_and_snapshots_that_do_not_fit_are_refused():
    for lags in ([], [0, 1], [1.5]):
        with pytest.raises(ValueError, match="must be whole numbers of at least 1"):
            analysis.LearningCorrelation(lags)
        with pytest.raises(ValueError, match="must be whole numbers of at least 1"):
            analysis.learning_correlation(torch.randn(30, 2), lags=lags)
    for few in (torch.randn(8, 2), torch.randn(0, 2)):
        with pytest.raises(ValueError, match="needs at least 9 snapshots"):
            analysis.learning_correlation(few)
    with pytest.raises(ValueError, match="needs at least 28 snapshots"):
        stream(torch.randn(25, 2), [20]).result()
    with pytest.raises(ValueError, match="the first had"):
        stream([torch.zeros(3), torch.zeros(4)], [1])
