"""What an engine prunes: every pattern, roles, shared, tied and transposed weights, and what stays dense."""

import pytest
import torch
from torch import nn
from transformers import AlbertConfig, AlbertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification
from transformers.pytorch_utils import Conv1D

from nxm_hf import NxMConfig, attach, recipes, verify
from tests.support.custom_methods import Recorder
from tests.support.grids import BOTH_WINDOWS, EACH_SPARSE_RECIPE, RECIPES, SPARSE, WINDOWS, pairs
from tests.support.models import assert_equal_weights, make_bert
from tests.support.toy_training import (
    IMPLEMENTATIONS,
    TOTAL,
    Toy,
    adamw,
    assert_sparse,
    short,
    short_or_skip,
    train,
    trained,
    trained_plainly,
    weights,
)


@EACH_SPARSE_RECIPE
@pytest.mark.parametrize("pattern", ["1:4", "4:8", "3:4", "2:4-transposable", "unstructured:0.25", "block:4:0.5"])
def test_every_recipe_ends_in_every_pattern(recipe, pattern):
    model, engine = trained(short_or_skip(recipe, pattern), steps=4)
    engine.finish()
    assert_sparse(model, pattern)


def test_each_role_ends_in_its_own_pattern():
    model = make_bert()
    optimizer = adamw(model)
    engine = attach(model, optimizer, NxMConfig("ste", {"ffn": "2:4", "query": "1:4", "default": "dense"}), 1)
    engine.finish()
    density = {target.layer.role: target.pattern.density for target in engine.plan.targets}
    assert density == {"query": 0.25, "ffn_in": 0.5, "ffn_out": 0.5} and verify(model).ok


@pytest.mark.parametrize("config", [NxMConfig("dense"), *(short(name, "dense") for name in RECIPES)], ids=str)
def test_the_recipe_dense_and_the_pattern_dense_are_plain_training(config):
    model, engine = trained(config)
    assert_equal_weights(model, trained_plainly(TOTAL))
    with engine.deployed():
        assert_equal_weights(model, trained_plainly(TOTAL))
    assert engine.metrics() == {} and engine.phase == "recipe"
    engine.finish()
    assert_equal_weights(model, trained_plainly(TOTAL))


@EACH_SPARSE_RECIPE
def test_the_head_and_the_biases_are_only_trained(recipe):
    model, engine = trained(short(recipe))
    engine.finish()
    assert all(name.endswith(("up", "down")) for name in engine.plan.layers)
    assert bool((model.head.weight != 0).all()) and bool((model.blocks[0].up.bias != 0).all())


def test_a_shared_layer_is_handled_once_a_step():
    words = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    model = AlbertForSequenceClassification(AlbertConfig(**words, embedding_size=8, max_position_embeddings=16))
    calls, optimizer = [], adamw(model)
    engine = attach(model, optimizer, NxMConfig(recipe=Recorder(calls)), total_steps=2)
    assert len(engine.plan.targets) == 6 and len(calls) == 6
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=torch.arange(8).view(2, 4), labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
    engine.finish()
    assert len(calls) == 6 + 2 * 2 * 6 and verify(model).ok


def test_a_tied_weight_stays_dense():
    """Pitfall 31: a matrix of the blocks that is also the head's is not pruned through the tie."""
    model = Toy()
    tied = nn.Linear(8, 16)
    tied.weight = model.blocks[1].up.weight
    model.decoder = tied
    before = tied.weight.detach().clone()
    engine = attach(model, adamw(model), "asp", total_steps=1)
    assert [target.name for target in engine.plan.targets] == ["blocks.0.up", "blocks.0.down", "blocks.1.down"]
    assert torch.equal(tied.weight, before)


@EACH_SPARSE_RECIPE
@WINDOWS
def test_conv1d_is_sparse_along_its_inputs_which_stand_first(recipe, window):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=16, pad_token_id=0)
    model = GPT2ForSequenceClassification(config)
    optimizer = adamw(model)
    engine = attach(model, optimizer, short(recipe, **window), total_steps=TOTAL)
    for _ in range(TOTAL):
        optimizer.zero_grad()
        model(input_ids=torch.arange(1, 9).view(2, 4), labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
    engine.finish()
    weight = model.transformer.h[0].mlp.c_fc.weight  # [in, out]
    assert weight.shape == (16, 64) and len(engine.plan.targets) == 8
    kept = weight.view(4, 4, 64).count_nonzero(1)
    assert bool((kept == 2).all()) or (
        recipe in ("set", "rigl") and bool((kept <= 2).all())
    )  # what has just grown is 0
    assert bool((weight.view(16, 16, 4).count_nonzero(-1) > 2).any()), "and not along its outputs"
    assert verify(model).ok


@pairs(recipe=SPARSE, window=BOTH_WINDOWS, optimizer=["adamw", "sgd"])
def test_conv1d_trains_as_the_linear_it_is(recipe, window, optimizer):
    """All edits of weight and gradient reach the stored [in, out] tensors."""
    model, turned = Toy(), Toy()
    for block in turned.blocks:
        block.up, block.down = _conv1d(block.up), _conv1d(block.down)
    settings = {"grad_scale": 0.5} if "grad_scale" in recipes.settings(recipe) else {}
    for network in (model, turned):
        stepper = IMPLEMENTATIONS[optimizer](network)
        engine = attach(network, stepper, short(recipe, settings=settings, **window), total_steps=TOTAL)
        for _ in train(network, stepper, 0, TOTAL):
            pass
        engine.finish()
    for one, other in zip(weights(model), weights(turned), strict=True):
        torch.testing.assert_close(one, other.t(), rtol=1e-3, atol=1e-5)
        assert torch.equal(one != 0, other.t() != 0)


def _conv1d(linear):
    turned = Conv1D(linear.out_features, linear.in_features)
    turned.load_state_dict({"weight": linear.weight.detach().t().contiguous(), "bias": linear.bias.detach()})
    return turned
