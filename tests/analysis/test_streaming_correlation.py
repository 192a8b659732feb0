"""The learning correlation of snapshots that come one at a time."""

import torch

from nxm_hf import analysis
from tests.support.series import some_series, stream


def test_a_stream_can_be_read_at_any_time():
    series, lags = some_series(), [1, 3, 9, 27]
    for count in (9, 12, 20, 37):
        now = stream(series[:count], lags).result().delta
        offline = analysis.learning_correlation(series[:count], lags=lags).delta
        assert torch.allclose(now, offline, rtol=0, atol=1e-9, equal_nan=True)


def test_a_stream_remembers_as_much_after_many_snapshots_as_after_few():
    def entries(found):
        return sum(value.numel() for value in vars(found).values() if isinstance(value, torch.Tensor))

    few, many = (stream(torch.randn(count, 6), [1, 5, 10]) for count in (20, 200))
    assert entries(few) == entries(many)
