"""`admm`: its settings."""

import pytest

from nxm_hf import NxMConfig


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"penalty": "decoupled", "rho": 0.1}, 'rho=0.1 is for penalty="coupled".*contraction='),
        ({"contraction": 0.5}, 'contraction=0.5 is for penalty="decoupled".*set rho'),
        ({"penalty": "loss"}, "'coupled', 'decoupled'; got 'loss'"),
        ({"start": "D"}, "'C', 'A', 'B'; got 'D'"),
        ({"steps": "day"}, "'auto', 'epoch'; got 'day'"),
        ({"steps": 0}, "at least 1; got 0"),
        ({"rho": "large"}, "rho of admm must be a number of at least 0; got 'large'"),
    ],
)
def test_wrong_settings_of_admm_say_what_to_set(settings, says):
    with pytest.raises(ValueError, match=says):
        NxMConfig("admm", settings=settings)
