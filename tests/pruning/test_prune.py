"""Pruning without training: laws of every method, pattern and family."""

import logging

import pytest
import torch

from nxm_hf import NxMConfig, NxMTrainer, prune, pruners, verify
from nxm_hf.config import SparsityRecord
from nxm_hf.layers.find import find_layers
from nxm_hf.patterns import PATTERNS, parse
from tests.support.models import (
    MODELS,
    assert_equal_weights,
    make_arguments,
    make_batches,
    make_bert,
    make_model,
    make_rows,
    make_texts,
    make_tokenizer,
)

METHODS = pruners.names()
FITTING = ["2:4", "1:4", "4:8", "2:4-transposable", "unstructured:0.5", "block:4:0.5", "block:4x4:0.5"]
TEXTS = make_batches("bert", count=8, rows=4)


def test_there_is_a_pattern_of_every_kind():
    assert {parse(text).kind for text in FITTING} == {kind.kind for kind in PATTERNS} - {"dense"}
    assert len(METHODS) >= 5


@pytest.mark.parametrize("pattern", FITTING)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_every_pattern_and_says_what_it_did(method, pattern):
    model, before = make_bert(), make_bert()
    outcome = prune(model, pattern, method, TEXTS)
    held = parse(pattern)
    for layer, old, row in zip(find_layers(model), find_layers(before), outcome.layers, strict=True):
        weight, dense = layer.weight.detach(), old.weight.detach()
        assert held.violations(weight) == 0 and not torch.signbit(weight[weight == 0]).any()
        assert (row.name, row.role, row.shape, row.pattern) == (layer.name, layer.role, layer.shape, str(held))
        assert row.density == float((weight != 0).double().mean()) == outcome.density == 0.5 or pattern == "1:4"
        kept = float(dense[weight != 0].double().square().sum() / dense.double().square().sum())
        assert row.kept_energy == pytest.approx(kept)
        assert row.magnitude_error > 0 and row.error >= 0 and row.tokens == 8 * (4 * 8 - 3)
    assert verify(model).ok and verify(model).density == outcome.density
    others = {layer.name for layer in find_layers(model)}
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[0] not in others:
            assert torch.equal(parameter, before.get_parameter(name)), f"{name} is not to be pruned"


@pytest.mark.parametrize("method", METHODS)
def test_errors_are_those_of_the_outputs_over_the_tokens(method):
    """Of the first block, whose inputs no pruning has changed; worked out from the outputs themselves."""
    model, dense = make_bert(), make_bert()
    outcome = prune(model, "2:4", method, TEXTS, exclude="encoder.layer.1")
    inputs = []
    probe = dense.bert.encoder.layer[0].attention.self.query
    probe.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach()))
    for batch in TEXTS:
        with torch.no_grad():
            dense.eval()(**batch)
    x = torch.cat([rows[batch["attention_mask"].bool()] for rows, batch in zip(inputs, TEXTS, strict=True)]).double()
    dense.requires_grad_(False)
    model.requires_grad_(False)
    for row, layer in list(zip(outcome.layers, find_layers(model), strict=False))[:3]:
        old = dense.get_submodule(layer.name)
        moved = layer.module.bias.double() - old.bias.double()
        lost = x @ (layer.weight.double() - old.weight.double()).T + moved
        assert row.error == pytest.approx(
            float(lost.square().sum() / (x @ old.weight.double().T).square().sum()), rel=1e-3
        )
        by_size = parse("2:4").project(old.weight).double() - old.weight.double()
        whole = (x @ old.weight.double().T).square().sum()
        assert row.magnitude_error == pytest.approx(float((x @ by_size.T).square().sum() / whole), rel=1e-3)


@pytest.mark.parametrize("pattern", ["2:4", "2:4-transposable"])
@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("magnitude", "wanda")])
def test_what_compensates_costs_less_than_magnitude_in_every_layer(method, pattern):
    for row in prune(make_bert(), pattern, method, make_batches("bert", 20, 8)).layers:
        assert row.error < row.magnitude_error, row.name


@pytest.mark.parametrize("method", ["magnitude", "wanda", "adaprune"])
@pytest.mark.parametrize("name", MODELS)
def test_every_family_is_pruned_saved_and_loaded_without_us(name, method, tmp_path):
    model = make_model(name)
    outcome = prune(model, "2:4", method, make_batches(name))
    assert verify(model).ok and {row.name for row in outcome.layers} == {layer.name for layer in find_layers(model)}
    assert all(row.error is None or 0 <= row.error < 1 for row in outcome.layers)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert_equal_weights(again, model)
    assert verify(tmp_path).ok and verify(tmp_path).density == 0.5
    record = SparsityRecord.from_pretrained(tmp_path)
    assert (record.config.recipe, record.config.pattern, record.density) == ("asp", "2:4", 0.5)
    assert record.pruning["method"] == method and set(record.layers) == {row.name for row in outcome.layers}
    assert record.to_dict() == model.config.nxm_config == SparsityRecord.from_dict(record.to_dict()).to_dict()


def test_magnitude_needs_no_calibration_and_then_knows_no_errors():
    model, with_texts = make_bert(), make_bert()
    outcome = prune(model)
    prune(with_texts, "2:4", "magnitude", TEXTS)
    assert_equal_weights(model, with_texts)
    assert all(row.error is row.magnitude_error is row.tokens is None and row.note == "" for row in outcome.layers)
    assert "error" not in str(outcome).splitlines()[-1] and outcome.error is None


@pytest.mark.parametrize("method", METHODS)
def test_without_a_report_the_weights_are_the_same_and_no_error_is_known(method):
    model, other = make_bert(), make_bert()
    with_errors = prune(model, "2:4", method, TEXTS)
    without = prune(other, "2:4", method, TEXTS, report=False)
    assert_equal_weights(model, other)
    assert all(row.error is row.magnitude_error is None for row in without.layers) and without.error is None
    assert without.density == with_errors.density
    assert without.tokens == (None if method == "magnitude" else with_errors.tokens)


def test_texts_are_read_with_the_tokenizer():
    texts, tokenizer = make_texts(12), make_tokenizer()
    model, other = make_bert(), make_bert()
    outcome = prune(model, "2:4", "wanda", texts, tokenizer, samples=12, length=10, batch_size=5)
    rows = [
        {"input_ids": torch.tensor([tokenizer(text, truncation=True, max_length=10)["input_ids"]])} for text in texts
    ]
    assert outcome.tokens == sum(row["input_ids"].numel() for row in rows)
    prune(other, "2:4", "wanda", rows)
    assert_equal_weights(model, other)


@pytest.mark.parametrize("method", METHODS)
def test_what_holds_the_pattern_already_stays_as_it_is(method):
    model = make_bert()
    prune(model, "2:4", method, TEXTS)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    outcome = prune(model, "4:8", method, TEXTS)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert (
        all(row.error == 0 for row in outcome.layers) and NxMConfig.from_dict(model.config.nxm_config).pattern == "4:8"
    )


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_and_frozen_weights_are_pruned_too(method):
    model = make_bert().to(torch.bfloat16).requires_grad_(False)
    prune(model, "2:4", method, TEXTS)
    assert verify(model).ok
    assert all(p.dtype == torch.bfloat16 and not p.requires_grad for p in model.parameters())


# -- afterwards --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["magnitude", "sparsegpt"])
def test_fine_tuning_goes_on_with_the_mask_and_the_weights_that_were_made(method, tmp_path, caplog):
    model = make_bert()
    prune(model, "2:4", method, TEXTS, exclude=["key"])
    model.save_pretrained(tmp_path / "pruned")
    model = make_bert().from_pretrained(tmp_path / "pruned")
    masks = {layer.name: layer.weight != 0 for layer in find_layers(model)}
    with caplog.at_level(logging.WARNING, "nxm_hf"):
        trainer = NxMTrainer(model, make_arguments(tmp_path / "run", max_steps=2), train_dataset=make_rows())
    assert "sparse already (2:4); training keeps its mask" in caplog.text
    trainer.train()
    trainer.save_model(tmp_path / "end")
    for layer in find_layers(trainer.model):
        assert torch.equal(layer.weight != 0, masks[layer.name]) or "key" in layer.name
    assert verify(tmp_path / "end").ok and NxMConfig.from_pretrained(tmp_path / "end").exclude == ["key"]


def test_layers_that_the_pattern_does_not_fit_are_an_error_or_are_said():
    with pytest.raises(ValueError, match="The pattern does not fit 2 layers"):
        prune(make_bert(intermediate_size=66))
    outcome = prune(make_bert(intermediate_size=66), on_indivisible="skip")
    assert len(outcome.layers) == 10 and len(outcome.skipped) == 2
    assert str(outcome).count("\nLeft dense: bert.encoder.layer.") == 2


# -- what is refused, and changes nothing ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (
            {"method": "wanda"},
            r'wanda scores weights by the inputs .*needs calibration data: .*method="magnitude"',
        ),
        ({"method": "wander"}, r"There is no method 'wander'.*Write 'wanda'"),
        ({"method": "wanda", "damp": 1}, "'wanda' has no settings; got 'damp'"),
        ({"pattern": "4:2"}, "2:4"),
        ({"pattern": "dense"}, r"pattern='dense' prunes nothing\. Write pattern='2:4'"),
        ({"inputs": "sparse"}, r"inputs must be .*got 'sparse'\. Write inputs=\"pruned\""),
        ({"include": "qurey"}, "closest names: query"),
        ({"method": pruners.make("magnitude"), "damping": 1}, "has its settings in it; got damping. Leave them out"),
        ({"method": "wanda", "calibration": []}, "The calibration data is empty"),
        ({"method": "wanda", "calibration": ["w1"]}, "is from no directory, so its tokenizer is not known"),
    ],
)
def test_what_cannot_be_done_is_an_error_before_anything_changes(kwargs, message):
    model = make_bert()
    with pytest.raises(ValueError, match=message):
        prune(model, **kwargs)
    assert_equal_weights(model, make_bert())
    assert not hasattr(model.config, "nxm_config")


def test_nan_is_an_error_that_names_the_layer():
    model = make_bert()
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"bert\.encoder\.layer\.1\.output\.dense holds 1 NaN"):
        prune(model)


def test_inputs_that_are_no_numbers_are_an_error_that_names_the_layer():
    model = make_bert()
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"layer\.0\.attention\.self\.query: .*Calibrate in fp32 or bf16"):
        prune(model, "2:4", "wanda", TEXTS)


def test_a_sparse_model_that_could_not_be_pruned_to_the_end_no_longer_claims_to_be_sparse():
    model = make_bert()
    prune(model, "1:4")
    with pytest.raises(ValueError, match="You must specify"):
        prune(model, "2:4", "wanda", [{"nonsense": torch.ones(1)}])
    assert not hasattr(model.config, "nxm_config")
