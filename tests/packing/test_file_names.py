"""Names of layers in files: those that transformers gives to them when it saves."""

import pytest
import torch
from torch import nn

from nxm_hf.layers.find import find_layers
from nxm_hf.packing.file_names import is_converted, keys_in_files, names_in_files, pieces_in_files
from nxm_hf.storage.model_files import skeleton
from tests.support.model_types import MIXTURES
from tests.support.models import MODELS, make_model
from tests.support.packed_models import FAMILIES, tensors_of
from tests.support.versions import OLD, not_in_4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_names_are_those_of_the_saved_weights(family, tmp_path):
    model = make_model(family)
    model.save_pretrained(tmp_path)
    names = names_in_files(skeleton(tmp_path), [layer.name for layer in find_layers(model)])
    saved = tensors_of(tmp_path)
    for layer in find_layers(model):
        assert saved[f"{names[layer.name]}.weight"].equal(layer.weight)


@not_in_4("converts no weights")
def test_layers_that_are_saved_joined_with_others_have_no_name():
    model = make_model("bert")
    assert names_in_files(model, ["bert.pooler.dense"]) == {"bert.pooler.dense": "bert.pooler.dense"}
    model._weight_conversions = [object()]  # a conversion that fails
    assert names_in_files(model, ["bert.pooler.dense"]) == {}


@pytest.mark.parametrize("family", MODELS)
def test_the_keys_are_those_of_the_files_and_tied_tensors_have_one_of_them(family, tmp_path):
    model = make_model(family)
    model.save_pretrained(tmp_path)
    saved, keys = tensors_of(tmp_path), keys_in_files(model)
    own = dict(model.state_dict())
    assert keys.keys() == own.keys()
    assert saved.keys() <= set(keys.values())
    assert all(saved[name].equal(own[key]) for key, name in keys.items() if name in saved)
    assert is_converted(model) == (own.keys() != set(keys.values())) == (family in ("vit", "swin") and not OLD)


@not_in_4("has no stacks of experts")
def test_experts_are_saved_in_pieces_that_cover_them(tmp_path):
    model = next(kind for kind in MIXTURES if kind.name == "mixtral").model(0)
    model.save_pretrained(tmp_path)
    saved, key = tensors_of(tmp_path), "model.layers.0.mlp.experts.gate_up_proj"
    weight = model.get_parameter(key).detach()
    assert key not in keys_in_files(model) and is_converted(model)
    pieces = pieces_in_files(model, key, weight.shape)
    assert len(pieces) == 2 * len(weight)
    for name, places in pieces.items():
        assert weight.flatten()[places].equal(saved[name])
    assert torch.cat([places.flatten() for places in pieces.values()]).sort().values.equal(torch.arange(weight.numel()))
    shapes = pieces_in_files(model, key, weight.shape, "meta")
    assert {name: piece.shape for name, piece in shapes.items()} == {n: piece.shape for n, piece in pieces.items()}


def test_modules_that_are_not_of_transformers_keep_their_names():
    model = nn.Sequential(nn.Linear(2, 2))
    assert keys_in_files(model) == {"0.weight": "0.weight", "0.bias": "0.bias"} and not is_converted(model)
    assert pieces_in_files(model, "0.weight", (2, 2)) == {}
