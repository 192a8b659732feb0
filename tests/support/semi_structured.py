"""2:4 weights, and a machine whose torch believes in a GPU; the products are those of `benchmarks.cpu_products`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from torch import Tensor, nn

from benchmarks.cpu_products import cpu_products
from nxm_hf.inference import cuda
from nxm_hf.inference.backends import BACKENDS
from nxm_hf.patterns import parse


def make_weight(rows: int, columns: int, dtype: torch.dtype = torch.bfloat16, pattern: str = "2:4") -> Tensor:
    """Return a random matrix that holds a pattern."""
    return parse(pattern).project(torch.randn(rows, columns)).to(dtype)


def make_layer(rows: int, columns: int, dtype: torch.dtype = torch.bfloat16, pattern: str = "2:4") -> nn.Linear:
    """Return a Linear with such a weight."""
    layer = nn.Linear(columns, rows, dtype=dtype)
    layer.weight.data = make_weight(rows, columns, dtype, pattern)
    return layer.requires_grad_(False)


@contextmanager
def pretended_gpu(folder: Path) -> Iterator[pytest.MonkeyPatch]:
    """Let torch describe the CPU as a GPU with both libraries, and keep caches in a folder."""
    cuda.works.cache_clear()
    with cpu_products(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HOME", str(folder))
        patch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
        patch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        patch.setattr(torch.backends.cusparselt, "is_available", lambda: True)
        patch.setattr(torch.backends.cusparselt, "version", lambda: 702)
        for name in ("cutlass", "cusparselt"):
            patch.setitem(BACKENDS, name, replace(BACKENDS[name], device_type="cpu"))
        yield patch
    cuda.works.cache_clear()
