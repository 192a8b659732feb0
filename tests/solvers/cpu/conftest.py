"""Kernels for CPUs are used for tensors of every size here."""

import pytest

from nxm_hf.solvers import base, cpu


@pytest.fixture
def kernels_for_every_size(monkeypatch):
    """Use kernels for small tensors, too. A kernel that fails its self-test leaves its work to torch: an error here."""
    monkeypatch.setattr(base, "MIN_NUMEL", 0)
    assert cpu.BACKEND.works(), "numba is installed and does not work here"
    yield
    assert not [kernel for kernel, passed in cpu.BACKEND.self_tests.items() if not passed]
