"""Restoring: the weights of a directory come into a model in place, whatever their names in the files."""

import pytest
import torch
from torch import nn

from nxm_hf.storage.restoring import load_weights, needs_conversion, restore_converted
from tests.support.containers import make_encoder
from tests.support.model_types import MODEL_TYPES
from tests.support.models import assert_equal_weights, make_model
from tests.support.saved_models import edit_weights

# Renamed, in pieces, joined with others, and under the names in memory with tied weights among them.
KINDS = [kind for kind in MODEL_TYPES if kind.name in ("vit", "mixtral", "nomic_bert", "gpt2", "t5")]
CONVERTED = ("vit", "mixtral", "nomic_bert")


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_parameters_stay_the_same_objects_and_get_the_saved_values(kind, tmp_path):
    saved, model = kind.model(0), kind.model(1)
    saved.save_pretrained(tmp_path)
    before = {key: id(parameter) for key, parameter in model.named_parameters()}
    chance = torch.get_rng_state()
    load_weights(tmp_path, model)
    assert torch.equal(torch.get_rng_state(), chance)
    assert_equal_weights(model, saved)
    assert {key: id(parameter) for key, parameter in model.named_parameters()} == before


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_only_what_a_plain_trainer_does_not_find_is_restored(kind, tmp_path):
    saved, model = kind.model(0), kind.model(1)
    saved.save_pretrained(tmp_path)
    assert needs_conversion(tmp_path, model) == (kind.name in CONVERTED)
    restore_converted(tmp_path, torch.nn.DataParallel(model))
    assert_equal_weights(model, saved if kind.name in CONVERTED else kind.model(1))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.name in CONVERTED], ids=str)
def test_weights_of_several_types_are_restored_bit_for_bit(kind, tmp_path):
    models = [kind.model(seed).to(torch.bfloat16) for seed in (0, 1)]
    for model in models:
        for module in model.modules():
            if "Norm" in type(module).__name__:
                module.float()
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in models[0].parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=noise))
    models[0].save_pretrained(tmp_path)
    assert {parameter.dtype for parameter in models[1].parameters()} == {torch.bfloat16, torch.float32}
    load_weights(tmp_path, models[1])
    assert_equal_weights(*models)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_weights_that_a_directory_lacks_stay_as_they_are(kind, tmp_path):
    """Whether it lacks a weight that transformers converts, or one that is saved as it is."""
    saved, model = kind.model(0), kind.model(1)
    saved.save_pretrained(tmp_path)
    before = {key: weight.clone() for key, weight in model.named_parameters()}
    edit_weights(tmp_path, lambda weights: [weights.pop(key) for key in sorted(weights)[:2]])
    load_weights(tmp_path, model)
    expected = dict(saved.named_parameters())
    stayed = [key for key, weight in model.named_parameters() if not torch.equal(weight, expected[key])]
    assert all(torch.equal(model.get_parameter(key), before[key]) for key in stayed)
    assert 1 <= len(stayed) <= 8


def test_a_weight_that_layers_share_is_found_under_any_of_its_names(tmp_path):
    """Programs choose different ones of them for their files."""
    saved, model = (make_model("gpt2", seed) for seed in (0, 1))
    saved.save_pretrained(tmp_path)
    for each in (saved, model):
        each.head = nn.Linear(32, 50, bias=False)
        each.head.weight = each.transformer.wte.weight
    names = {"transformer.wte.weight", "head.weight"}
    for name in sorted(names):
        wte = saved.transformer.wte.weight.detach().clone()
        edit_weights(tmp_path, lambda weights: [weights.pop(key) for key in names & weights.keys()])
        edit_weights(tmp_path, lambda weights: weights.update({name: wte}))  # noqa: B023
        assert not needs_conversion(tmp_path, model)
        with torch.no_grad():
            model.head.weight.zero_()
        load_weights(tmp_path, model)
        assert_equal_weights(model, saved)


def test_a_model_with_parts_of_its_own_is_restored_with_them(tmp_path):
    """Its config says nothing of the new head, so transformers could not build it anew."""
    models = [make_model("vit", seed) for seed in (0, 1)]
    for model in models:
        model.classifier = nn.Linear(32, 7)
        model.scale = nn.Parameter(torch.randn(3))
    models[0].save_pretrained(tmp_path)
    load_weights(tmp_path, models[1])
    assert_equal_weights(*models)


def test_containers_and_directories_without_weights_are_left_to_trainer(tmp_path):
    encoder = make_encoder()
    encoder.save_pretrained(str(tmp_path / "encoder"))
    assert not needs_conversion(tmp_path / "encoder", encoder)
    assert not needs_conversion(tmp_path, make_model("vit"))
    assert not needs_conversion(tmp_path, nn.Linear(2, 2))


def test_weights_of_another_naming_than_that_of_the_model_are_found(tmp_path):
    """A model that was loaded under its names in memory saves under them, and its checkpoint may have others."""
    saved, model = make_model("vit", 0), make_model("vit", 1)
    saved.save_pretrained(tmp_path)
    model._weight_conversions = []
    assert needs_conversion(tmp_path, model)
    load_weights(tmp_path, model)
    assert_equal_weights(model, saved)
