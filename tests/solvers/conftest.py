"""Fixtures of the tests of solvers."""

import pytest

from nxm_hf.solvers import base, reference_only


@pytest.fixture(params=["torch", "kernels"])
def tier(request, monkeypatch):
    """Use no kernels at all, or all that can take a tensor of any size."""
    monkeypatch.setattr(base, "MIN_NUMEL", 0)
    if request.param == "kernels":
        yield request.param
        return
    with reference_only():
        yield request.param
