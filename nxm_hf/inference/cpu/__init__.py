"""Products with packed weights on CPUs, by vector code that numba compiles. Needs `pip install nxm-hf[fast]`."""

from collections.abc import Callable
from functools import cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from nxm_hf.inference.layout import GROUP_SIZES, INPUTS, ROWS, Layout, interleave
from nxm_hf.solvers import self_test

DTYPES = (torch.float32, torch.bfloat16)
TOKENS = (1, 2, 5, 23, 300)  # of the self-test: each worker, with and without a rest


class Multiply(Protocol):
    """The type of `linear.multiply`."""

    def __call__(
        self, x: Tensor, values: Tensor, indices: Tensor, bias: Tensor, layout: Layout
    ) -> tuple[Tensor, bool]: ...


@cache
def load() -> Multiply:
    """Import the kernels, and return the function that multiplies with a packed weight.

    Raises:
        ImportError: If numba is missing.
    """
    from nxm_hf.inference.cpu.linear import multiply

    return multiply


@cache
def obstacle(n: int, m: int, dtype: torch.dtype) -> str | None:
    """Return why there is no kernel for a kind of weight here, or None if there is one. Compiles and tests it.

    Args:
        n: Kept entries of a group.
        m: Entries of a group.
        dtype: The type of the weight.
    """
    if dtype not in DTYPES:
        return f"there is no CPU kernel for {str(dtype).removeprefix('torch.')}, only for float32 and bfloat16"
    if m not in GROUP_SIZES:
        return f"there is no CPU kernel for {n}:{m}, only for groups of 4 and 8"
    try:
        multiply = load()
    except Exception as error:  # numba is missing, or does not fit Python or numpy
        return f"the CPU kernels need numba (pip install 'nxm-hf[fast]'): {error}"
    name = f"product with {n}:{m} in {dtype}"
    works = self_test.passes(name, lambda: _is_right(multiply, n, m, dtype))
    return None if works else "the CPU kernel failed its self-test here"


def _is_right(multiply: Callable[..., tuple[Tensor, bool]], n: int, m: int, dtype: torch.dtype) -> bool:
    """Return whether products are those of torch in double precision, and infinite inputs are reported."""
    rows, columns = 2 * ROWS + 3, 2 * INPUTS + m
    generator = torch.Generator("cpu").manual_seed(0)
    weight = torch.randn(rows, columns // m, m, generator=generator, device="cpu")
    order = torch.rand(weight.shape, generator=generator, device="cpu").argsort(-1)
    weight = (weight * (order < n)).flatten(1).to(dtype)
    values, indices = interleave(weight, n, m)
    bias = torch.zeros(values.shape[0] * ROWS, device="cpu")
    bias[:rows] = torch.randn(rows, generator=generator, device="cpu")
    layout = Layout(n, m, rows, columns)
    for tokens in TOKENS:
        x = torch.randn(tokens, columns, generator=generator, device="cpu")
        y, valid = multiply(x, values, indices, bias, layout)
        exact = F.linear(x.double(), weight.double(), bias[:rows].double())
        size = F.linear(x.double().abs(), weight.double().abs(), bias[:rows].double().abs())
        if not valid or bool(((y - exact).abs() > columns * 2**-24 * size).any()):
            return False
        x[-1, -1] = torch.inf
        if multiply(x, values, indices, bias, layout)[1]:
            return False
    return True
