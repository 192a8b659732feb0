"""The axes of charts."""

import pytest

from nxm_hf.report.axes import fit_axis


def test_ticks_are_round_few_and_inside():
    for low, high in ((0, 1), (0.99993, 1.0), (-3e-7, 4e-7), (1e5, 3e6), (5, 5), (0, 0)):
        axis = fit_axis([low, high], 0, 100)
        assert 1 <= len(axis.ticks) <= 7 and all(-0.1 <= axis.position(tick) <= 100.1 for tick in axis.ticks)
    axis = fit_axis([1e-4, 0.5], 100, 0, logarithmic=True)
    assert [round(tick, 9) for tick in axis.ticks] == [1e-4, 1e-3, 1e-2, 1e-1]
    assert axis.position(1e-2) == pytest.approx((axis.position(1e-3) + axis.position(1e-1)) / 2, abs=0.02)
