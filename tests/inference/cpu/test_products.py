"""The kernels are right with the vector instructions of other CPUs, too."""

import os
import platform
import subprocess
import sys

import pytest

pytest.importorskip("numba", reason="the kernels for CPUs need numba")
from nxm_hf.inference.cpu import products

CODE = """
import torch
from nxm_hf.inference import cpu
from nxm_hf.inference.cpu import products
print(sorted(products.host_features() & {"avx2", "avx512f", "fma"}), cpu.obstacle(2, 4, torch.float32))
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine().lower() not in products.X86, reason="the features are those of x86")
@pytest.mark.parametrize(
    ("features", "used"),
    [("+sse4.2,+avx,+avx2,+fma", "['avx2', 'fma'] None"), ("+sse4.2", "[] None")],
    ids=["AVX2", "SSE"],
)
def test_kernels_pass_their_self_test_with_the_instructions_of_an_older_cpu(features, used):
    if "+avx2" in features and "avx2" not in products.host_features():
        pytest.skip("this CPU has no AVX2")
    environment = {**os.environ, "NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": features}
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment)
    assert run.returncode == 0 and run.stdout.strip() == used, run.stderr
