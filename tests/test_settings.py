"""The checks of settings."""

import pytest

from nxm_hf.settings import at_least_zero, one_of


def test_numbers_of_at_least_zero_are_taken_as_floats():
    assert at_least_zero("ste", "grad_scale", 0) == 0.0 and isinstance(at_least_zero("ste", "grad_scale", 2), float)
    for wrong in (True, "1", -1e-9, float("inf"), None):
        with pytest.raises(ValueError, match=f"grad_scale of ste .*got {wrong!r}"):
            at_least_zero("ste", "grad_scale", wrong)


def test_a_choice_is_one_of_the_choices():
    assert one_of("admm", "start", "A", ("C", "A")) == "A"
    with pytest.raises(ValueError, match="start of admm must be one of 'C', 'A'; got 'X'"):
        one_of("admm", "start", "X", ("C", "A"))
