"""Threads of kernels, and processes that have them."""

import sys
import threading

import pytest
import torch

from nxm_hf.patterns import parse
from nxm_hf.solvers import solve

pytest.importorskip("numba", reason="the kernels for CPUs need numba")
torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("kernels_for_every_size")


@pytest.mark.parametrize("text", ["2:4", "4:8-transposable", "unstructured:0.5"])
def test_threads_change_no_mask_and_are_as_many_as_torch_uses(text, monkeypatch):
    monkeypatch.setattr(sys.modules["nxm_hf.solvers.cpu.threads"], "MIN_NUMEL", 0)
    monkeypatch.setattr(sys.modules["nxm_hf.solvers.cpu.threads"], "PIECE", 2**10)
    scores = torch.randn(64, 512)
    before = threading.active_count()
    alone = solve(scores, parse(text))
    assert threading.active_count() <= before  # other tests may have started some, and ended them since
    torch.set_num_threads(3)
    try:
        assert torch.equal(solve(scores, parse(text)), alone)
    finally:
        torch.set_num_threads(1)
    assert threading.active_count() <= before + 2


def test_kernels_run_without_the_interpreters_lock():
    """With it threads take turns, which gives the same masks in more time."""
    kernels = sys.modules["nxm_hf.solvers.cpu.kernels"]
    for kernel in (kernels.tile_kernel(4, 8), kernels.group_kernel("mask", 2, 4, 32, 0x7F800000)):
        assert kernel.targetoptions["nogil"] is True
