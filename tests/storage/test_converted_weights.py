"""Weights that are saved under other names, or in pieces, are read by their names in memory, one at a time."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nxm_hf import prune, verify
from nxm_hf.storage import model_files
from nxm_hf.storage.converted_weights import ConvertedWeights
from nxm_hf.storage.inspect import inspect
from nxm_hf.storage.model_files import skeleton
from nxm_hf.storage.weight_files import WeightFiles
from tests.support.model_types import MIXTURES, MODEL_TYPES
from tests.support.saved_models import edit_weights

KINDS = [kind for kind in MODEL_TYPES if kind.name in ("vit", "swin", "beit", "mixtral", "qwen3_moe", "bert")]


@pytest.fixture(params=KINDS, ids=str)
def model(request):
    return request.param.model(0)


def test_every_weight_is_found_by_its_name_in_memory(model, tmp_path):
    model.save_pretrained(tmp_path)
    with WeightFiles(tmp_path) as files:
        weights = ConvertedWeights(files, skeleton(tmp_path))
        for key, tensor in model.state_dict().items():
            assert key in weights and weights[key].equal(tensor) and weights[key].dtype == tensor.dtype, key
        assert "no.such.weight" not in weights
        with pytest.raises(KeyError):
            weights["no.such.weight"]


def test_a_saved_model_is_verified_and_inspected_without_being_loaded_whole(model, tmp_path, monkeypatch):
    """A mixture of experts does not fit into the memory of most machines twice."""
    prune(model, "2:4")
    model.save_pretrained(tmp_path)
    monkeypatch.delattr(model_files, "load_with_missing")
    assert verify(tmp_path).ok and verify(tmp_path).density == 0.5
    assert {layer.density for layer in inspect(tmp_path).layers} == {0.5}


def test_what_is_saved_of_a_weight_under_each_of_its_names_is_what_the_files_hold(model, tmp_path):
    model.save_pretrained(tmp_path)
    with WeightFiles(tmp_path) as files:
        weights, named = ConvertedWeights(files, skeleton(tmp_path)), set()
        for key, tensor in model.state_dict().items():
            for name in weights.names(key):
                assert torch.equal(weights.part(key, name, tensor).flatten(), files[name].flatten()), name
                named.add(name)
        assert named >= {name for names in files.shards.values() for name in names}
        assert weights.names("no.such.weight") in ([], ["no.such.weight"])


@pytest.mark.parametrize("damage", ["absent", "another shape", "turned"])
def test_a_stack_of_experts_is_found_only_if_all_of_its_pieces_have_their_shapes(damage, tmp_path):
    model = next(kind for kind in MIXTURES if kind.name == "mixtral").model(0)
    model.save_pretrained(tmp_path)
    piece = "model.layers.0.block_sparse_moe.experts.2.w1.weight"
    changes = {"another shape": lambda weight: weight[:, :8], "turned": lambda weight: weight.t()}

    def edit(weights):
        weight = weights.pop(piece)
        if damage in changes:
            weights[piece] = changes[damage](weight).contiguous()

    edit_weights(tmp_path, edit)
    with WeightFiles(tmp_path) as files:
        weights = ConvertedWeights(files, skeleton(tmp_path))
        lost = {key for key in model.state_dict() if key not in weights}
        assert lost == {"model.layers.0.mlp.experts.gate_up_proj"}


@pytest.mark.parametrize("damage", ["absent", "another shape"])
def test_experts_with_a_damaged_piece_are_an_error_of_one_line(damage, tmp_path):
    model = next(kind for kind in MIXTURES if kind.name == "mixtral").model(0)
    prune(model, "2:4")
    model.save_pretrained(tmp_path)
    piece = "model.layers.0.block_sparse_moe.experts.2.w1.weight"

    def edit(weights):
        if damage == "absent":
            del weights[piece]
        else:
            weights[piece] = weights[piece][:, :8].contiguous()

    edit_weights(tmp_path, edit)
    with pytest.raises(ValueError) as error:
        verify(tmp_path)
    assert "\n" not in str(error.value)


def test_the_names_of_a_plain_module_are_those_in_memory(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    with WeightFiles(tmp_path) as files:
        assert torch.equal(ConvertedWeights(files, model)["0.weight"], model[0].weight)
