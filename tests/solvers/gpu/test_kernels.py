"""The kernels of GPUs on a CPU, by Triton's interpreter: the same bits as torch, and torch where a kernel fails.

Triton comes with torch for CUDA; elsewhere `pip install triton` (Linux) lets this run.
"""

import importlib.util
import subprocess

import pytest
import torch

from nxm_hf.patterns import parse
from nxm_hf.solvers import SOLVERS, choose, gpu
from tests.support.processes import command, environment


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton, which torch for CPUs lacks")
def test_kernels_do_what_torch_does():
    """A process of its own: whether Triton interprets is settled when it is imported."""
    done = subprocess.run(
        command("triton"), env=environment(TRITON_INTERPRET="1"), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_on_a_cpu_they_are_not_asked_for():
    assert choose(torch.ones(512, 512), parse("2:4")) not in gpu.SOLVERS.values()
    assert not gpu.supports_prices(torch.ones(4, 4, 2**14, dtype=torch.int32), 2)
    assert SOLVERS["nm"].index(gpu.SOLVERS["nm"]) < 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_why_they_are_not_in_use_is_said():
    assert gpu.BACKEND.unavailable() == "torch sees no GPU"
