"""Pruning block by block, against whole forwards of the model with plain hooks."""

import copy
import logging

import pytest
import torch
from torch import nn

from nxm_hf import prune, pruners, verify
from nxm_hf.layers.find import find_layers
from nxm_hf.layers.modules import find_blocks
from nxm_hf.patterns import parse
from tests.support.layer_inputs import Witness, grouped, literal_inputs
from tests.support.models import MODELS, assert_equal_weights, make_batches, make_bert, make_model

METHODS = pruners.names()


@pytest.mark.parametrize("name", MODELS)
def test_what_a_method_is_shown_is_what_enters_the_layers_of_the_dense_model(name):
    model, batches = make_model(name), make_batches(name)
    layers = find_layers(model)
    rows = literal_inputs(model, batches, layers)
    witness = Witness()
    outcome = prune(model, "2:4", witness, batches, inputs="dense")
    expected = [layer for layer in layers if layer.name in rows and not grouped(layer)]
    assert len(witness.seen) == len(expected) > 5
    shown = dict(zip([layer.name for layer in in_order(make_model(name), expected)], witness.seen, strict=True))
    for layer in expected:
        x, inputs = rows[layer.name], shown[layer.name]
        assert inputs.count == len(x)
        torch.testing.assert_close(inputs.gram.double(), x.T @ x, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(inputs.mean.double(), x.mean(0), rtol=1e-5, atol=1e-6)
    assert {one.name: one.tokens for one in outcome.layers} == {
        layer.name: len(rows[layer.name]) if layer in expected else None for layer in layers
    }


def in_order(model, layers):
    """The layers as the replay meets them: its blocks as they are called, of each the layers as they are listed."""
    places = [path for path, _ in find_blocks(model)]
    return sorted(
        layers, key=lambda layer: next(n for n, path in enumerate(places) if f"{layer.name}.".startswith(f"{path}."))
    )


@pytest.mark.parametrize("inputs", ["pruned", "dense"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_pruned_as_by_hand_with_a_whole_forward_for_each_block(name, inputs):
    model, batches = make_model(name), make_batches(name)
    by_hand, dense = copy.deepcopy(model), copy.deepcopy(model)
    prune(model, "2:4", "wanda", batches, inputs=inputs)
    layers, pattern = find_layers(by_hand), parse("2:4")
    for path, _ in find_blocks(by_hand):
        own = [layer for layer in layers if layer.name.startswith(f"{path}.")]
        source = by_hand if inputs == "pruned" else dense
        twins = [layer for layer in find_layers(source) if layer.name.startswith(f"{path}.")]
        rows = literal_inputs(source, batches, twins)
        for layer in own:
            weight = layer.matrix(layer.weight.data)
            scores = weight.abs()
            if layer.name in rows and not grouped(layer):
                scores = scores * rows[layer.name].square().sum(0).sqrt().float()
            weight.copy_(torch.where(pattern.mask(scores), weight, 0))
    for layer, other in zip(layers, find_layers(model), strict=True):
        assert torch.equal(layer.weight != 0, other.weight != 0), layer.name
        assert torch.equal(layer.weight, other.weight)


# -- layers of which the calibration data says little


class Experts(nn.Module):
    """Two blocks of a used and an unused expert; the first input of the used one is always zero."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"used": nn.Linear(8, 8), "unused": nn.Linear(8, 8)}) for _ in range(2)
        )
        for layer in self.layers:
            layer.forward = lambda x, layer=layer: layer["used"](x * torch.tensor([0.0] + [1.0] * 7))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_that_is_never_called_is_pruned_by_magnitude_and_that_is_said(method):
    model = Experts()
    before = [layer.weight.detach().clone() for layer in find_layers(model)]
    outcome = prune(model, "2:4", method, [{"x": torch.randn(20, 8)}])
    for row, layer, old in zip(outcome.layers, find_layers(model), before, strict=True):
        assert layer.weight.isfinite().all() and row.density == 0.5
        if "unused" in row.name:
            assert torch.equal(layer.weight, parse("2:4").project(old)) and row.error is None
            assert "never called with the calibration data" in row.note
        else:
            assert row.note == "1 of 8 inputs always zero"


@pytest.mark.parametrize("method", METHODS)
def test_too_few_tokens_and_no_tokens_make_no_nan_and_are_said(method, caplog):
    with caplog.at_level(logging.WARNING, "nxm_hf"):
        outcome = prune(model := make_bert(), "2:4", method, make_batches("bert", 1))
    assert all(row.note == f"13 tokens for {row.shape[1]} inputs" for row in outcome.layers) and verify(model).ok
    assert "fewer tokens (13) than 12 of the layers have inputs (up to 64)" in caplog.text
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    nothing = {"input_ids": torch.ones(1, 4, dtype=torch.long), "attention_mask": torch.zeros(1, 4, dtype=torch.long)}
    outcome = prune(model := make_bert(), "2:4", method, [nothing])
    assert all(row.error is None for row in outcome.layers) and verify(model).ok
    by_size = make_bert()
    prune(by_size)
    assert_equal_weights(model, by_size)
