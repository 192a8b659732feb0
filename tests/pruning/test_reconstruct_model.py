"""A whole model that is fitted after it was pruned: what it is fitted to, what changes, and what is held."""

import shutil

import pytest
import torch
from transformers.utils import logging

from nxm_hf import prune, verify
from nxm_hf.layers.find import find_layers
from nxm_hf.pruning.block_cache import BlockCache
from nxm_hf.pruning.reconstruct_model import WHOLE_MODEL
from nxm_hf.pruning.result import PruningResult
from nxm_hf.storage.model_files import load_model
from tests.support.models import MODELS, TWO_STACKS, assert_equal_weights, make_batches, make_bert, make_model

FEW = {"scope": "model", "steps": 12}
TEXTS = make_batches("bert", count=4, rows=4)


def last_states(model, name, batches):
    """The last hidden states of the model without its head, as one vector without padding."""
    base = (model.model.decoder if name == "opt" else model.base_model).eval()  # the head of OPT skips its base model
    found = []
    for batch in batches:
        accepted = {key: value for key, value in batch.items() if key != "labels"}
        with torch.no_grad():
            states = base(**accepted)[0].double()
        mask = batch.get("decoder_attention_mask" if name in TWO_STACKS else "attention_mask")
        found.append(states[mask.bool()].flatten() if mask is not None and mask.dim() == 2 else states.flatten())
    return torch.cat(found)


@pytest.mark.parametrize("name", MODELS)
def test_every_family_comes_nearer_to_the_dense_model_and_the_error_is_that(name):
    model, dense, other, batches = make_model(name), make_model(name), make_model(name), make_batches(name)
    result = prune(model, "2:4", "wanda", batches, reconstruct=FEW)
    without = prune(other, "2:4", "wanda", batches)
    (fitted,) = result.blocks
    assert fitted.name == WHOLE_MODEL and fitted.after < fitted.before
    wanted = last_states(dense, name, batches)
    for found, error in ((model, fitted.after), (other, fitted.before)):
        lost = (last_states(found, name, batches) - wanted).square().sum() / wanted.square().sum()
        assert error == pytest.approx(float(lost), rel=1e-3)
    assert verify(model).ok and result.density == without.density
    for layer, plain in zip(find_layers(model), find_layers(other), strict=True):
        weight = layer.weight.detach()
        assert torch.equal(weight != 0, plain.weight != 0) and not torch.signbit(weight[weight == 0]).any()


def test_pruned_layers_and_norms_change_and_nothing_else():
    model, dense = make_bert(), make_bert()
    prune(model, "2:4", "wanda", TEXTS, exclude=["key"], reconstruct=FEW)  # kept weights of "wanda" are the dense ones
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, dense.get_parameter(name))}
    blocks = {name for name, _ in model.named_parameters() if ".layer." in name and ".key." not in name}
    assert changed == blocks | {"bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.bias"}
    for name in (name for name in changed if model.get_parameter(name).dim() == 2):
        fitted, before = model.get_parameter(name), dense.get_parameter(name)
        moved = fitted[fitted != 0] != before[fitted != 0]
        assert moved.float().mean() > 0.9, name


def test_the_words_of_padding_change_nothing():
    model, other = make_bert(), make_bert()
    changed = [{**batch, "input_ids": batch["input_ids"].where(batch["attention_mask"] == 1, 7)} for batch in TEXTS]
    assert any(not torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(TEXTS, changed, strict=True))
    errors = [prune(m, "2:4", "wanda", t, reconstruct=FEW).blocks[0] for m, t in ((model, TEXTS), (other, changed))]
    assert errors[0].before == pytest.approx(errors[1].before, rel=1e-5)
    assert errors[0].after == pytest.approx(errors[1].after, rel=1e-3)


def test_a_fit_is_the_same_for_the_same_seed_and_differs_for_another():
    models = [make_bert() for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        prune(model, "2:4", "magnitude", TEXTS, reconstruct={**FEW, "seed": seed})
    assert_equal_weights(models[0], models[1])
    with pytest.raises(AssertionError, match="differ"):
        assert_equal_weights(models[0], models[2])


def test_a_fit_that_diverges_leaves_the_model_as_the_method_made_it():
    model, other = make_bert(), make_bert()
    result = prune(model, "2:4", "sparsegpt", TEXTS, reconstruct={"scope": "model", "steps": 4, "learning_rate": 1e6})
    prune(other, "2:4", "sparsegpt", TEXTS)
    assert_equal_weights(model, other)
    assert result.blocks[0].after == result.blocks[0].before > 0


def test_frozen_weights_in_half_precision_keep_their_type_and_no_gradient_is_left():
    model = make_bert().to(torch.bfloat16).requires_grad_(False)
    result = prune(model, "2:4", "magnitude", TEXTS, reconstruct=FEW)
    assert verify(model).ok and result.blocks[0].after < result.blocks[0].before
    assert all(p.dtype == torch.bfloat16 and not p.requires_grad and p.grad is None for p in model.parameters())


def test_a_killed_job_that_continues_ends_with_the_same_weights(tmp_path):
    model, other = make_bert(), make_bert()
    result = prune(model, "2:4", "wanda", TEXTS, cache=BlockCache(tmp_path / "cache", {"job": 1}), reconstruct=FEW)
    shutil.rmtree(tmp_path / "cache" / "bert.encoder.layer.1")
    again = prune(other, "2:4", "wanda", TEXTS, cache=BlockCache(tmp_path / "cache", {"job": 1}), reconstruct=FEW)
    assert_equal_weights(model, other)
    assert again.blocks == result.blocks and again.layers == result.layers


def test_a_directory_gives_the_same_weights_as_memory_and_says_how_it_was_fitted(tmp_path):
    model = make_model("llama")
    model.save_pretrained(tmp_path / "dense")
    batches = make_batches("llama")
    prune(tmp_path / "dense", "2:4", "wanda", batches, reconstruct=FEW, out=tmp_path / "out")
    prune(model, "2:4", "wanda", batches, reconstruct=FEW)
    assert_equal_weights(load_model(tmp_path / "out"), model)
    result = PruningResult.read(tmp_path / "out")
    assert result.reconstruct["scope"] == "model" and [block.name for block in result.blocks] == [WHOLE_MODEL]


@pytest.mark.parametrize("scope", ["model", "block"])
def test_steps_of_a_fit_of_the_model_show_their_progress(scope, monkeypatch, capsys):
    monkeypatch.setattr(logging, "_tqdm_active", True)  # for all tests it is off
    prune(make_bert(), "2:4", "wanda", TEXTS, report=False, reconstruct={"scope": scope, "steps": 7})
    progress = capsys.readouterr().err
    assert "Pruning blocks" in progress
    assert ("Fitting the model: 100%" in progress and "7/7" in progress) == (scope == "model")
