"""PackedLinear: it computes what the dense layer computes, in about half of the memory."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from nxm_hf.packing import PackedLinear
from nxm_hf.patterns import parse

PATTERNS = ("2:4", "1:4", "3:5", "2:4-transposable")


def sparse_layer(kind="linear", pattern="2:4", bias=True, dtype=torch.float32):
    """Return a layer of 40 inputs and 20 outputs that holds the pattern."""
    layer = nn.Linear(40, 20, bias=bias) if kind == "linear" else Conv1D(20, 40)
    matrix = layer.weight.detach() if kind == "linear" else layer.weight.detach().t()
    matrix.copy_(parse(pattern).project(torch.randn_like(matrix)))
    return layer.to(dtype)


@pytest.mark.parametrize("shape", [(40,), (3, 40), (2, 3, 40), (0, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_outputs_equal_those_of_the_dense_layer_bit_for_bit(kind, pattern, dtype, shape):
    layer = sparse_layer(kind, pattern, dtype=dtype)
    packed, inputs = PackedLinear.from_dense(layer, pattern), torch.randn(shape).to(dtype)
    if kind == "conv1d" and inputs.dim() == 1:
        inputs = inputs[None]
    packed.check()
    assert torch.equal(packed(inputs), layer(inputs))
    assert torch.equal(packed.dense_weight(), layer.weight) and packed.dense_weight().is_contiguous()


def test_a_layer_without_a_bias_and_inputs_in_any_layout_are_right():
    layer = sparse_layer(bias=False)
    packed, inputs = PackedLinear.from_dense(layer, "2:4"), torch.randn(40, 6).t()
    assert packed.bias is None and torch.equal(packed(inputs), layer(inputs))
    assert torch.equal(packed(inputs[::2]), layer(inputs[::2]))


def test_the_tensors_take_half_of_the_memory_and_follow_the_module():
    layer = sparse_layer(dtype=torch.bfloat16)
    packed = PackedLinear.from_dense(layer, "2:4")
    assert sum(t.nbytes for t in (packed.weight, packed.weight_nxm_idx)) == 0.5625 * layer.weight.nbytes
    state = packed.state_dict()
    assert set(state) == {"weight", "weight_nxm_idx", "bias"}
    assert packed.float().weight_nxm_idx.dtype == torch.uint8 and packed.weight.dtype == torch.float32
    again = PackedLinear(40, 20, "2:4")
    again.load_state_dict(state)
    assert torch.equal(again.dense_weight(), layer.weight.float())
    assert torch.equal(copy.deepcopy(packed).dense_weight(), packed.dense_weight())


def test_no_parameter_can_be_trained_and_gradients_reach_the_inputs():
    layer = sparse_layer()
    packed = PackedLinear.from_dense(layer, "2:4")
    assert not any(parameter.requires_grad for parameter in packed.parameters())
    inputs, same = torch.randn(3, 40, requires_grad=True), None
    packed(inputs).sum().backward()
    same = inputs.grad.clone()
    inputs.grad = None
    layer(inputs).sum().backward()
    assert torch.equal(same, inputs.grad)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_it_becomes_a_dense_layer_again_which_can_be_trained(kind):
    layer = sparse_layer(kind)
    dense = PackedLinear.from_dense(layer, "2:4").to_dense()
    assert type(dense) is type(layer) and all(parameter.requires_grad for parameter in dense.parameters())
    assert torch.equal(dense.weight, layer.weight) and torch.equal(dense.bias, layer.bias)
    assert PackedLinear.from_dense(layer, "2:4").to_dense(torch.bfloat16).weight.dtype == torch.bfloat16


def test_it_prints_its_shape_and_pattern():
    assert str(PackedLinear.from_dense(sparse_layer(pattern="2:4-transposable"), "2:4-transposable")) == (
        "PackedLinear(in_features=40, out_features=20, bias=True, pattern=2:4-transposable)"
    )


def test_a_pattern_that_cannot_be_packed_and_a_layer_that_breaks_it_are_refused():
    with pytest.raises(ValueError, match=r"unstructured:0\.5 cannot be packed"):
        PackedLinear(40, 20, "unstructured:0.5")
    with pytest.raises(ValueError, match="the-layer breaks 2:4"):
        PackedLinear.from_dense(nn.Linear(40, 20), "2:4", "the-layer")


def test_damaged_indices_are_found_by_the_check():
    packed = PackedLinear.from_dense(sparse_layer(), "2:4")
    packed.weight_nxm_idx[3, 1] = 0
    with pytest.raises(ValueError, match="the-layer is damaged"):
        packed.check("the-layer")
