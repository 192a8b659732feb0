"""Products with packed weights on CPUs: those of torch in double precision, for every shape, pattern and type."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from nxm_hf.inference.layout import ROWS, Layout, interleave
from tests.support.inference import sparse_matrix

pytest.importorskip("numba", reason="the kernels for CPUs need numba")
from nxm_hf.inference.cpu.linear import cover, multiply

PATTERNS = [(2, 4), (1, 4), (4, 8)]


def packed_product(x, weight, bias, n, m):
    """Multiply with the packed form of a weight."""
    values, indices = interleave(weight, n, m)
    filled = torch.zeros(len(values) * ROWS)
    filled[: len(bias)] = bias
    return multiply(x, values, indices, filled, Layout(n, m, *weight.shape))


def assert_exact(y, x, weight, bias):
    """Assert that every output is within the bound for a sum of so many rounded terms."""
    exact = F.linear(x.double(), weight.double(), bias.double())
    bound = F.linear(x.double().abs(), weight.double().abs(), bias.double().abs()) * 2**-24 * (weight.shape[1] + 1)
    assert y.shape == exact.shape and bool(((y - exact).abs() <= bound).all())


@settings(max_examples=60)
@given(
    st.sampled_from(PATTERNS),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 300),
    st.integers(1, 90),
    st.integers(1, 40),
    st.integers(0, 2**16),
)
def test_products_of_any_shape_are_those_in_double_precision(pattern, dtype, tokens, rows, groups, seed):
    if dtype == torch.bfloat16 and pattern != (2, 4):
        dtype = torch.float32  # the other kernels of bf16 are tested before their use
    n, m = pattern
    generator = torch.Generator().manual_seed(seed)
    weight = sparse_matrix(rows, groups * m, n, m, dtype, seed)
    x, bias = (torch.randn(shape, generator=generator) for shape in ((tokens, groups * m), (rows,)))
    y, valid = packed_product(x, weight, bias, n, m)
    assert valid
    assert_exact(y, x, weight, bias)


@pytest.mark.parametrize("tokens", [1, 7, 16, 129])
@pytest.mark.parametrize("strange", [float("inf"), float("-inf"), float("nan")])
def test_one_infinite_input_or_nan_makes_the_outputs_invalid(tokens, strange):
    weight, bias = sparse_matrix(48, 128, 2, 4), torch.zeros(48)
    for place in ((0, 0), (tokens - 1, 127), (tokens // 2, 65)):
        x = torch.randn(tokens, 128)
        assert packed_product(x, weight, bias, 2, 4)[1]
        x[place] = strange
        assert not packed_product(x, weight, bias, 2, 4)[1]
    x = torch.full((tokens, 128), torch.finfo(torch.float32).max)
    assert packed_product(x, weight, bias, 2, 4)[1]


@pytest.mark.parametrize("tokens", [1, 40, 128, 700])
def test_threads_do_not_change_a_bit(tokens):
    weight, bias, x = sparse_matrix(1024, 512, 2, 4), torch.randn(1024), torch.randn(tokens, 512)
    alone, _ = packed_product(x, weight, bias, 2, 4)
    torch.set_num_threads(3)
    try:
        together, valid = packed_product(x, weight, bias, 2, 4)
    finally:
        torch.set_num_threads(1)
    assert valid and torch.equal(alone, together)


@given(st.integers(0, 2000), st.sampled_from([4, 8]))
def test_tiles_cover_each_token_once_and_waste_little(tokens, largest):
    ranges = list(cover(tokens, largest))
    assert [first for _, first, _ in ranges] == [sum(count for *_, count in ranges[:i]) for i in range(len(ranges))]
    assert sum(count for *_, count in ranges) == tokens
    for vectors, _, count in ranges:
        assert count <= 8 if vectors == 0 else count % (16 * vectors) == 0 or (vectors == 1 and 8 < count < 16)
