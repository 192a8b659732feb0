"""Older versions of transformers: how they name weights, what they mark as loaded, and what they forget."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, BertConfig, BertModel

from nxm_hf.config.versions import as_saved, forgets_best
from nxm_hf.packing.quantizer import NxMPackedConfig, NxMQuantizer
from tests.support.packed_models import tensors_of

SIZE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}


def llava():
    parts = {
        "text_config": {"model_type": "llama", "vocab_size": 99, **SIZE},
        "vision_config": {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 8, **SIZE},
    }
    return AutoModelForImageTextToText.from_config(AutoConfig.for_model("llava", **parts, image_token_index=98))


@pytest.mark.parametrize("make", [llava, lambda: BertModel(BertConfig(vocab_size=99, **SIZE))])
def test_tensors_are_named_as_they_are_saved(make, tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    saved, named = tensors_of(tmp_path), as_saved(model, dict(model.state_dict()))
    assert saved.keys() <= named.keys()
    assert all(torch.equal(named[name], tensor) for name, tensor in saved.items())


@pytest.mark.parametrize(
    ("version", "forgets"),
    [("4.57.1", True), ("5.0.0", True), ("5.3.0", True), ("5.4.0", False), ("5.24.0", False), ("6.0.0.dev0", False)],
)
def test_the_versions_that_forget_the_best_model_are_known(version, forgets):
    assert forgets_best(version) is forgets


def test_a_quantizer_knows_what_was_loaded_by_names_or_by_marks():
    quantizer = NxMQuantizer(NxMPackedConfig({}))
    loaded, filled = torch.ones(1), torch.ones(1)
    loaded._is_hf_initialized = True
    assert quantizer.is_loaded("a", loaded) and not quantizer.is_loaded("b", filled)
    assert quantizer.update_expected_keys(None, ["b", "c"], ["b"]) == ["b", "c"]  # transformers 4.57 calls it
    assert quantizer.is_loaded("b", filled) and not quantizer.is_loaded("c", filled)
