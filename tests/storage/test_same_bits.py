"""Comparison of tensors bit by bit."""

import math

import pytest
import torch

from nxm_hf.storage.same_bits import same_bits

PAIRS = [(0.0, -0.0), (1.0, 1.0000001), (math.nan, 1.0)]


@pytest.mark.parametrize("shape", [(300, 517), (1, 3), (5,), (), (0, 4), (3, 2, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool], ids=str)
def test_a_copy_holds_the_same_bits_whatever_its_strides(shape, dtype):
    tensor = torch.randn(shape).to(dtype)
    assert same_bits(tensor, tensor.clone())
    if tensor.ndim > 1:
        assert same_bits(tensor.mT, tensor.mT.clone()) and same_bits(tensor.mT, tensor.mT.contiguous())


@pytest.mark.parametrize("value, other", PAIRS)
@pytest.mark.parametrize("place", [0, 2**16, -1])
@pytest.mark.parametrize("width", [517, 518])
def test_one_entry_with_other_bits_is_seen(value, other, place, width):
    tensor = torch.zeros(301, width)
    tensor.view(-1)[place] = value
    changed = tensor.clone()
    assert same_bits(tensor, changed)  # NaN too
    changed.view(-1)[place] = other
    assert not same_bits(tensor, changed) and not same_bits(tensor.t(), changed.t())


def test_another_shape_or_type_is_not_the_same():
    tensor = torch.zeros(4, 6)
    assert not same_bits(tensor, torch.zeros(6, 4)) and not same_bits(tensor, torch.zeros(4, 6, dtype=torch.int32))
