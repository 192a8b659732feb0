"""What a saved adapter says of itself, read without PEFT."""

import json

import pytest
import torch
from safetensors.torch import save_file

from nxm_hf.storage.adapter_files import MASKED, check_adapter_weights, read_adapter


def write(folder, **config):
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_a_directory_without_an_adapter_has_none(tmp_path):
    assert read_adapter(tmp_path) is None


@pytest.mark.parametrize(("initial", "masked"), [(MASKED, True), (True, False), ("gaussian", False), (None, False)])
def test_an_adapter_is_masked_if_it_is_marked(initial, masked, tmp_path):
    adapter = read_adapter(write(tmp_path, base_model_name_or_path="base", init_lora_weights=initial))
    assert adapter.base == "base" and adapter.is_masked is masked


@pytest.mark.parametrize("name", [None, ""])
def test_an_adapter_that_names_no_base_says_what_to_write(name, tmp_path):
    with pytest.raises(ValueError, match=r"names no base model.*as \"base_model_name_or_path\"\."):
        _ = read_adapter(write(tmp_path, base_model_name_or_path=name)).base


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_torn_config_is_refused_with_its_path(text, tmp_path):
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"adapter_config\.json .*Save the adapter again\."):
        read_adapter(tmp_path)


def test_the_weights_of_an_adapter_are_there_and_whole(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no adapter_model\.safetensors"):
        check_adapter_weights(tmp_path)
    save_file({"a": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    check_adapter_weights(tmp_path)
    whole = (tmp_path / "adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter_model.safetensors").write_bytes(whole[:-4])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors cannot be read .* Save the adapter again\."):
        check_adapter_weights(tmp_path)
