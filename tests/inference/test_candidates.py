"""Candidates are the linear layers of a model that own their weight."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from nxm_hf.inference.candidates import find_candidates
from nxm_hf.packing import PackedLinear
from tests.support.inference import sparse_bert, sparse_linear, sparse_matrix
from tests.support.models import MODELS


def test_layers_are_found_with_the_pattern_that_they_hold():
    found = {each.name: each.pattern for each in find_candidates(sparse_bert())}
    assert found["bert.encoder.layer.0.attention.self.query"] == (2, 4)
    assert found["bert.encoder.layer.1.output.dense"] == (2, 4)
    assert found["classifier"] is None and len(found) == 14


def test_a_weight_that_is_shared_with_an_embedding_is_none():
    model = MODELS["gpt2"]()
    model.tie_weights()
    names = [each.name for each in find_candidates(model)]
    assert "lm_head" not in names and "transformer.h.0.attn.c_attn" in names


def test_a_transposed_and_a_packed_layer_give_their_matrix():
    matrix = sparse_matrix(8, 12, 2, 4)
    conv = Conv1D(8, 12).requires_grad_(False)
    conv.weight.copy_(matrix.t())
    dense = sparse_linear(8, 12)
    packed = PackedLinear.from_dense(dense, "2:4")
    first, second, third = find_candidates(nn.ModuleList([conv, packed, PackedLinear.from_dense(conv, "2:4")]))
    assert first.pattern == second.pattern == third.pattern == (2, 4)
    assert first.shape == second.shape == third.shape == (8, 12)
    assert torch.equal(first.matrix(), matrix) and torch.equal(third.matrix(), matrix)
    assert torch.equal(second.matrix(), dense.weight)
    assert first.dense() is conv and torch.equal(second.dense().weight, dense.weight)
    assert torch.equal(third.dense().weight, conv.weight)


def test_layers_of_one_kind_share_pattern_shape_and_type():
    layers = [
        sparse_linear(8, 16),
        sparse_linear(8, 16),
        sparse_linear(8, 16, (1, 4)),
        sparse_linear(8, 16, bias=False),
    ]
    kinds = [each.kind for each in find_candidates(nn.ModuleList(layers))]
    assert kinds[0] == kinds[1] and len(set(kinds)) == 3
