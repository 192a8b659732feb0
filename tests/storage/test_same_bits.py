"""Comparison of tensors bit by bit."""

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from nxm_hf.storage.same_bits import same_bits

PAIRS = [(0.0, -0.0), (1.0, 1.0000001), (math.nan, 1.0)]


@pytest.mark.parametrize("shape", [(300, 517), (1, 3), (3, 3), (5,), (), (0, 4), (3, 2, 8)])
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


class Copies(TorchDispatchMode):
    """Counts the copies that are made of tensors."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten.clone.default, torch.ops.aten.copy_.default)
        return function(*args, **(kwargs or {}))


def test_a_tensor_is_copied_only_if_the_other_lies_in_memory_in_another_way():
    """A model may have little memory left beside its weights."""
    rows = torch.randn(6, 4, 8)
    for a, b, copies in (
        (rows, rows.clone(), 0),
        (rows.mT, rows.clone().mT, 0),
        (rows[0].t(), rows[0].clone().t(), 0),
        (nn.Parameter(rows), nn.Parameter(rows.clone()), 0),
        (rows.mT, rows.mT.contiguous(), 1),
    ):
        with Copies() as seen:
            assert same_bits(a, b)
        assert seen.count == copies


def test_another_shape_or_type_is_not_the_same():
    tensor = torch.zeros(4, 6)
    assert not same_bits(tensor, torch.zeros(6, 4)) and not same_bits(tensor, torch.zeros(4, 6, dtype=torch.int32))
