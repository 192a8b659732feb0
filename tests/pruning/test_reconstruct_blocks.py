"""Blocks that are fitted after they were pruned: what they are fitted to, what changes, and what is held."""

import shutil

import pytest
import torch
from torch import nn

from nxm_hf import prune, pruners, verify
from nxm_hf.layers.find import find_layers
from nxm_hf.layers.modules import find_blocks
from nxm_hf.patterns import parse
from nxm_hf.pruning.block_cache import BlockCache
from nxm_hf.pruning.reconstruction import hidden_states
from tests.support.models import MODELS, TWO_STACKS, assert_equal_weights, make_batches, make_bert, make_model

FEW = {"steps": 12}
PATTERNS = ["2:4", "1:4", "4:8", "2:4-transposable", "unstructured:0.5", "block:4x4:0.5"]
TEXTS = make_batches("bert", count=4, rows=4)


def outputs_of_blocks(model, name, batches):
    """The hidden states that each block returns at each call, without padding."""
    found = {path: [] for path, _ in find_blocks(model)}
    mask = None

    def keep(path):
        def call(*args, **kwargs):
            output = forwards[path](*args, **kwargs)
            states = hidden_states(output).detach().double()
            own = mask[1] if "decoder" in path.split(".") and name in TWO_STACKS else mask[0]
            if own is not None and states.shape[:2] == own.shape:
                states = states[own.bool()]
            found[path].append(states.flatten())
            return output

        return call

    forwards = {path: block.forward for path, block in find_blocks(model)}
    for path, block in find_blocks(model):
        block.forward = keep(path)  # some models call it, and not the module
    for batch in batches:
        mask = batch.get("attention_mask"), batch.get("decoder_attention_mask")
        with torch.no_grad():
            model(**batch)
    for _, block in find_blocks(model):
        del block.forward
    return {path: torch.cat(states) for path, states in found.items() if states}


@pytest.mark.parametrize("name", MODELS)
def test_each_block_of_every_family_comes_nearer_to_the_dense_model_and_the_error_is_that(name):
    model, dense, batches = make_model(name), make_model(name), make_batches(name)
    result = prune(model, "2:4", "magnitude", batches, reconstruct=FEW)
    wanted, found = (outputs_of_blocks(m, name, batches) for m in (dense, model))
    blocks = {block.name: block for block in result.blocks}
    assert set(blocks) == set(wanted)
    for path, block in blocks.items():
        lost = (found[path] - wanted[path]).square().sum() / wanted[path].square().sum()
        if len(blocks) > 1:  # a block that is called several times was fitted to inputs of its former self
            assert block.after == pytest.approx(float(lost), rel=1e-3), path
        assert block.after < block.before
    assert verify(model).ok
    by_size = make_model(name)
    prune(by_size, "2:4")
    for layer, other in zip(find_layers(model), find_layers(by_size), strict=True):
        assert torch.equal(layer.weight != 0, other.weight != 0), layer.name


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", pruners.names())
def test_masks_are_those_of_the_method_and_zeros_are_positive(method, pattern):
    model, other = make_bert(num_hidden_layers=1), make_bert(num_hidden_layers=1)
    result = prune(model, pattern, method, TEXTS, reconstruct=FEW)
    without = prune(other, pattern, method, TEXTS)
    assert without.blocks == () and result.density == without.density
    for layer, plain in zip(find_layers(model), find_layers(other), strict=True):
        weight = layer.weight.detach()
        assert torch.equal(weight != 0, plain.weight != 0) and not torch.signbit(weight[weight == 0]).any()
        assert parse(pattern).violations(weight) == 0 and not torch.equal(weight, plain.weight)
    assert result.blocks[0].after < result.blocks[0].before


def test_only_pruned_layers_and_norms_change():
    model, dense = make_bert(), make_bert()
    prune(model, "2:4", "wanda", TEXTS, exclude=["key", "encoder.layer.1"], reconstruct=FEW)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, dense.get_parameter(name))}
    first = {name for name, _ in model.named_parameters() if "encoder.layer.0." in name and ".key." not in name}
    assert changed == first and any("LayerNorm.weight" in name for name in changed)


def test_a_fit_is_the_same_for_the_same_seed_and_differs_for_another():
    models = [make_bert() for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        prune(model, "2:4", "magnitude", TEXTS, reconstruct={**FEW, "seed": seed})
    assert_equal_weights(models[0], models[1])
    with pytest.raises(AssertionError, match="differ"):
        assert_equal_weights(models[0], models[2])


def test_a_fit_that_diverges_leaves_the_block_as_the_method_made_it():
    model, other = make_bert(), make_bert()
    result = prune(model, "2:4", "sparsegpt", TEXTS, reconstruct={"steps": 4, "learning_rate": 1e6})
    prune(other, "2:4", "sparsegpt", TEXTS)
    assert_equal_weights(model, other)
    assert all(block.after == block.before > 0 for block in result.blocks)


@pytest.mark.parametrize("inputs", ["pruned", "dense"])
def test_a_killed_job_that_continues_ends_with_the_same_weights(inputs, tmp_path):
    model, other = make_bert(num_hidden_layers=3), make_bert(num_hidden_layers=3)
    options = dict(inputs=inputs, reconstruct=FEW)
    result = prune(model, "2:4", "wanda", TEXTS, cache=BlockCache(tmp_path / "cache", {"job": 1}), **options)
    for number in (1, 2):
        shutil.rmtree(tmp_path / "cache" / f"bert.encoder.layer.{number}")
    again = prune(other, "2:4", "wanda", TEXTS, cache=BlockCache(tmp_path / "cache", {"job": 1}), **options)
    assert_equal_weights(model, other)
    assert again.blocks == result.blocks and len(again.blocks) == 3 and again.layers == result.layers


def test_frozen_weights_in_half_precision_keep_their_type_and_no_gradient_is_left():
    model = make_bert().to(torch.bfloat16).requires_grad_(False)
    result = prune(model, "2:4", "magnitude", TEXTS, reconstruct=FEW)
    assert verify(model).ok and all(block.after < block.before for block in result.blocks)
    assert all(p.dtype == torch.bfloat16 and not p.requires_grad and p.grad is None for p in model.parameters())


class Whispering(nn.Module):
    """Two blocks, of which the second adds what a hook has heard in the first, so outputs cannot be cached."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)) for _ in range(2))
        self.heard = 0.0
        self.layers[0][0].register_forward_hook(lambda module, args, output: setattr(self, "heard", output.detach()))
        self.layers[1].register_forward_pre_hook(lambda module, args: (args[0] + self.heard,))

    def forward(self, x):
        self.heard = 0.0
        return self.layers[1](self.layers[0](x))


def test_blocks_whose_outputs_cannot_be_cached_are_fitted_to_what_they_made_of_the_same_inputs():
    result = prune(model := Whispering(), "2:4", "magnitude", [{"x": torch.randn(20, 8)}], reconstruct=FEW)
    assert len(result.blocks) == 2 and all(block.after < block.before for block in result.blocks)
    assert all(parse("2:4").violations(layer.weight) == 0 for layer in find_layers(model))


def test_vectors_that_are_shared_with_another_block_stay_as_they_are():
    model = make_bert()
    first, second = (layer.output.LayerNorm for layer in model.bert.encoder.layer)
    second.weight = first.weight
    before = first.weight.detach().clone()
    prune(model, "2:4", "magnitude", TEXTS, reconstruct=FEW)
    assert torch.equal(first.weight, before) and not torch.equal(first.bias, torch.zeros_like(first.bias))


def test_without_a_report_the_fit_is_the_same():
    model, other = make_bert(), make_bert()
    prune(model, "2:4", "magnitude", TEXTS, reconstruct=FEW)
    result = prune(other, "2:4", "magnitude", TEXTS, reconstruct=FEW, report=False)
    assert_equal_weights(model, other)
    assert result.error is None and len(result.blocks) == 2
