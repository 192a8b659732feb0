"""to_inference puts packed layers where they are measured to be faster, and says why it leaves others dense."""

import copy
import re

import pytest
import torch
from torch import nn
from transformers import GenerationConfig, pipeline

import nxm_hf
from nxm_hf.inference.candidates import find_candidates
from nxm_hf.inference.sparse_linear import SparseLinear
from nxm_hf.inference.timing import Timing
from nxm_hf.packing import PackedLinear
from tests.support.inference import sparse_bert, sparse_linear
from tests.support.models import MODELS, make_tokenizer

pytest.importorskip("numba", reason="the kernels for CPUs need numba")

IDS = torch.arange(24).view(2, 12)


def all_of(model, **settings):
    """Replace all layers that can be replaced, whatever it costs."""
    return nxm_hf.to_inference(model, only_if_faster=False, length=16, **settings)


@pytest.fixture
def measured(monkeypatch):
    """Return a function that sets the speed-up of packed layers by the tokens of a call."""

    def set_speedups(speedups):
        answers = iter(speedups)

        def time_in_turns(alternatives, seconds=0.2, device=None):
            return {"dense": Timing((float(next(answers)),)), "packed": Timing((1.0,))}

        monkeypatch.setattr("nxm_hf.inference.conversion.time_in_turns", time_in_turns)

    return set_speedups


def test_a_converted_model_gives_the_logits_of_the_dense_one():
    model = sparse_bert()
    dense = copy.deepcopy(model)
    report = all_of(model)
    assert len(report.converted) == 12 and len(report.layers) == 14
    assert {layer.backend for layer in report.layers if layer.pattern == "dense"} == {"dense"}
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=IDS).logits, dense(input_ids=IDS).logits, rtol=1e-4, atol=1e-5)
    assert report.bytes_after < report.bytes_before


@pytest.mark.parametrize("name", sorted(MODELS))
def test_models_of_every_family_compute_what_they_did(name):
    model = MODELS[name]().eval()
    for candidate in find_candidates(model):
        weight = candidate.matrix()
        if weight.shape[1] % 4 == 0:
            weight.copy_(nxm_hf.patterns.parse("2:4").project(weight))
    dense = copy.deepcopy(model)
    inputs = model.dummy_inputs
    if model.main_input_name == "pixel_values":
        size = model.config.image_size
        inputs = {"pixel_values": torch.randn(1, 3, size, size)}
    assert all_of(model).converted
    with torch.no_grad():
        ours, theirs = (each(**inputs)[0] for each in (model, dense))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_layer_is_replaced_if_it_is_faster_at_one_shape_and_slower_at_none(measured):
    measured([0.98, 1.5])
    model = nn.Sequential(sparse_linear(32, 64))
    report = nxm_hf.to_inference(model, batch=2, length=[1, 8])
    assert isinstance(model[0], SparseLinear) and report.tokens == (2, 16)
    assert report.layers[0].speedups == {2: 0.98, 16: 1.5} and report.layers[0].reason == "faster"


@pytest.mark.parametrize(
    ("speedups", "reason"),
    [((0.96, 2.0), "slower at 1 tokens: left dense"), ((0.98, 0.99), "no faster: left dense")],
)
def test_a_layer_that_is_slower_at_one_shape_stays_dense(measured, speedups, reason):
    measured(speedups)
    model = nn.Sequential(sparse_linear(32, 64))
    report = nxm_hf.to_inference(model, length=[1, 8])
    assert type(model[0]) is nn.Linear and report.layers[0].reason == reason and not report.converted


def test_layers_of_one_kind_are_measured_together(measured):
    measured([2.0, 0.5])  # one answer for each kind
    model = nn.Sequential(sparse_linear(32, 64), nn.ReLU(), sparse_linear(64, 32), nn.ReLU(), sparse_linear(32, 64))
    report = nxm_hf.to_inference(model, length=8)
    assert [layer.backend for layer in report.layers] == ["cpu", "dense", "cpu"]


def test_packed_layers_become_fast_ones_or_dense_ones(measured):
    measured([2.0, 0.5])
    first, second = sparse_linear(32, 64), sparse_linear(64, 32)
    model = nn.Sequential(PackedLinear.from_dense(first, "2:4"), PackedLinear.from_dense(second, "2:4"))
    nxm_hf.to_inference(model, length=8)
    assert isinstance(model[0], SparseLinear) and type(model[1]) is nn.Linear
    x = torch.randn(3, 64)
    torch.testing.assert_close(model(x), second(first(x)), rtol=1e-4, atol=1e-4)


def test_the_model_is_frozen_and_cannot_be_saved(tmp_path):
    model = sparse_bert().train()
    all_of(model)
    assert not model.training and not any(weight.requires_grad for weight in model.parameters())
    with pytest.raises(RuntimeError, match="Save the model before to_inference"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_several_models_of_one_process_are_independent():
    models = [sparse_bert(seed=seed) for seed in range(2)]
    expected = [model(input_ids=IDS).logits for model in models]
    for model in models:
        all_of(model)
    for model, logits in zip(models, expected, strict=True):
        torch.testing.assert_close(model(input_ids=IDS).logits, logits, rtol=1e-4, atol=1e-5)


def test_generate_gives_the_tokens_of_the_dense_model():
    model = MODELS["llama"]().eval()
    for candidate in find_candidates(model):
        if ".layers." in candidate.name:
            candidate.matrix().copy_(nxm_hf.patterns.parse("2:4").project(candidate.matrix()))
    settings = GenerationConfig(max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0)
    prompt = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    expected = model.generate(**prompt, generation_config=settings)
    assert all_of(model).converted
    assert torch.equal(model.generate(**prompt, generation_config=settings), expected)


def test_a_pipeline_gives_the_scores_of_the_dense_model():
    tokenizer = make_tokenizer()
    model = sparse_bert()
    text = "a b c"
    expected = pipeline("text-classification", model=model, tokenizer=tokenizer)(text)
    assert all_of(model).converted
    scores = pipeline("text-classification", model=model, tokenizer=tokenizer)(text)
    assert scores[0]["label"] == expected[0]["label"]
    assert scores[0]["score"] == pytest.approx(expected[0]["score"], abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(backend="gpu"), "There is no backend 'gpu'; write backend='auto'"),
        (dict(batch=0), "batch=0 and length=128 must be numbers of at least 1"),
        (dict(length=[]), "must be numbers of at least 1"),
    ],
)
def test_wrong_arguments_are_named(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        nxm_hf.to_inference(nn.Sequential(sparse_linear(8, 16)), **settings)


def test_the_measurement_takes_turns_on_real_layers():
    model = nn.Sequential(sparse_linear(256, 256), sparse_linear(256, 256))
    report = nxm_hf.to_inference(model, length=4)
    assert set(report.layers[0].speedups) == {4} and report.layers[0].speedups == report.layers[1].speedups
