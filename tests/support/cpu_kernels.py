"""Kernels for CPUs beside torch, for the tests of both."""

import torch
from hypothesis import strategies as st

from nxm_hf.solvers import reference_only

INF = float("inf")
PLAIN = ["1:2", "2:4", "1:4", "3:4", "4:8", "8:16", "16:32", "31:32"]
TILED = ["2:4-transposable", "1:8-transposable", "4:8-transposable", "16:32-transposable"]
PREDICTED = {"nm": "by_cpu_network", "transposable": "by_cpu_duals", "unstructured": "by_cpu_threshold"}
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def in_torch(act):
    """Call a function with no kernels in use."""
    with reference_only():
        return act()


values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-45, -1e-40, 3e38, INF, -INF]) | st.floats(
    width=32, allow_nan=False
)


@st.composite
def weights(draw, rows=16, cols=64):
    """Draw mostly random numbers, with drawn ones among them, or only few different ones."""
    made = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    weight = torch.randn(rows, cols, generator=made)
    step = draw(st.sampled_from([0.0, 0.5, 2.0]))
    if step:
        weight = (weight / step).round() * step  # ties, and -0.0
    places = torch.randint(0, rows * cols, (12,), generator=made)
    drawn = draw(st.lists(values, min_size=12, max_size=12))
    return weight.flatten().index_copy(0, places, torch.tensor(drawn)).view(rows, cols)
