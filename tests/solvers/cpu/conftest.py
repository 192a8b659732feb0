"""Kernels for CPUs are used for tensors of every size here."""

import pytest

from nxm_hf.solvers import base, cpu


@pytest.fixture
def kernels_for_every_size(monkeypatch):
    """Use kernels for small tensors, too."""
    monkeypatch.setattr(base, "MIN_NUMEL", 0)
    assert cpu.BACKEND.works(), "numba is installed and does not work here"
