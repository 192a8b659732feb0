"""Loading packed directories with transformers: packed, dense, without heads, in other types, and damaged."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel, AutoModelForSequenceClassification, BertForTokenClassification, T5EncoderModel

import nxm_hf
from nxm_hf.packing import NxMPackedConfig, PackedLinear, read_packed_config
from nxm_hf.storage.manifest import MANIFEST_FILE
from nxm_hf.storage.packed_directory import unpack_directory
from nxm_hf.storage.verify import verify
from tests.support.models import IMAGES, TWO_STACKS
from tests.support.packed_models import FAMILIES, damage, save_both, tensors_of
from tests.support.versions import not_in_4

QUERY = "bert.encoder.layer.0.attention.self.query"
DENSE = NxMPackedConfig(dequantize=True)


def inputs_of(family):
    """Return inputs for a forward pass of a family."""
    if family in IMAGES:
        return {"pixel_values": torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
    tokens = torch.arange(2 * 8).view(2, 8) % 40 + 3
    return {"input_ids": tokens} | ({"decoder_input_ids": tokens} if family in TWO_STACKS else {})


def assert_complete(info):
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]


def assert_same_weights(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_model_computes_what_the_dense_one_computes_bit_for_bit(family, tmp_path):
    model, _, folder = save_both(tmp_path, family)
    packed, info = type(model).from_pretrained(folder, output_loading_info=True)
    assert_complete(info)
    layers = [module for module in packed.modules() if isinstance(module, PackedLinear)]
    assert len({id(layer) for layer in layers}) == len(read_packed_config(folder).layers) > 0
    assert not any(p.requires_grad for layer in layers for p in layer.parameters())
    inputs = inputs_of(family)
    with torch.no_grad():
        assert torch.equal(packed(**inputs)[0], model(**inputs)[0])
    assert set(verify(packed).layers) == set(verify(folder).layers) == set(verify(model).layers)


@pytest.mark.parametrize("family", ["albert", "bert", "gpt2", "t5", "vit"])
def test_dequantize_gives_a_plain_model_that_can_be_trained_and_saved(family, tmp_path):
    model, plain, folder = save_both(tmp_path, family)
    loaded, info = type(model).from_pretrained(folder, quantization_config=DENSE, output_loading_info=True)
    assert_complete(info)
    assert_same_weights(loaded, model)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert [type(module) for module in loaded.modules()] == [type(module) for module in model.modules()]
    loaded.save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config == json.loads((plain / "config.json").read_text()) and "quantization_config" not in config
    assert tensors_of(tmp_path / "again").keys() == tensors_of(plain).keys()


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "vit"])
def test_weights_get_the_type_that_was_asked_for(family, dense, tmp_path):
    """T5 keeps some of its layers in float32 whatever is asked."""
    model, plain, folder = save_both(tmp_path, family)
    options = {"quantization_config": NxMPackedConfig(dequantize=True)} if dense else {}
    loaded = type(model).from_pretrained(folder, dtype=torch.bfloat16, **options)
    assert_same_weights(
        loaded if dense else loaded.dequantize(), type(model).from_pretrained(plain, dtype=torch.bfloat16)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "vit"])
def test_a_model_without_its_head_is_loaded_from_the_files_of_one_with_a_head(family, dtype, tmp_path):
    _, plain, folder = save_both(tmp_path, family)
    base = AutoModel.from_pretrained(folder, dtype=dtype)
    expected = AutoModel.from_pretrained(plain, dtype=dtype)
    assert any(isinstance(module, PackedLinear) for module in base.modules())
    base.save_pretrained(tmp_path / "base")
    again = AutoModel.from_pretrained(tmp_path / "base", quantization_config=NxMPackedConfig(dequantize=True))
    unpack_directory(tmp_path / "base", tmp_path / "unpacked")
    expected.save_pretrained(tmp_path / "expected")
    assert tensors_of(tmp_path / "unpacked").keys() == tensors_of(tmp_path / "expected").keys()
    loaded, theirs = base.dequantize().state_dict(), expected.state_dict()
    assert loaded.keys() == theirs.keys() == again.state_dict().keys()
    for name, tensor in theirs.items():
        if "pooler" not in name:  # it is in no file, and begins at random
            assert torch.equal(loaded[name], tensor) and torch.equal(again.state_dict()[name], tensor)


def test_a_new_head_is_put_on_the_files_of_a_model_without_one(tmp_path):
    _, _, folder = save_both(tmp_path, "albert")
    head, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert verify(head.albert).ok and torch.isfinite(head(**inputs_of("albert")).logits).all()


def test_layers_of_a_part_that_the_model_lacks_are_left_out(tmp_path):
    model, _, folder = save_both(tmp_path, "t5")
    encoder = T5EncoderModel.from_pretrained(folder)
    assert torch.equal(encoder(**{"input_ids": torch.arange(8)[None]})[0], model.encoder(torch.arange(8)[None])[0])


def test_another_head_takes_the_packed_body(tmp_path):
    model, _, folder = save_both(tmp_path)
    other = BertForTokenClassification.from_pretrained(folder, num_labels=5, ignore_mismatched_sizes=True)
    assert torch.equal(other.get_submodule(QUERY).dense_weight(), model.get_submodule(QUERY).weight)


@pytest.mark.parametrize("family", ["bert", "gpt2", "vit"])
def test_a_packed_model_is_saved_packed_again_in_one_file_or_many(family, tmp_path):
    model, _, folder = save_both(tmp_path, family)
    packed = type(model).from_pretrained(folder)
    packed.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    assert read_packed_config(tmp_path / "many").to_dict() == read_packed_config(folder).to_dict()
    ours, theirs = tensors_of(tmp_path / "many"), tensors_of(folder)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert_same_weights(type(model).from_pretrained(tmp_path / "many").dequantize(), model)
    assert verify(tmp_path / "many").ok


@pytest.mark.parametrize("pattern", ["1:4", "5:8", "2:4-transposable", {"ffn": "1:4", "default": "1:2"}], ids=str)
def test_every_pattern_along_rows_can_be_loaded(pattern, tmp_path):
    model, _, folder = save_both(tmp_path, pattern=pattern)
    assert_same_weights(type(model).from_pretrained(folder).dequantize(), model)


def test_dequantize_can_be_asked_of_the_config_too(tmp_path):
    model, _, folder = save_both(tmp_path)
    config = type(model.config).from_pretrained(folder)
    config.quantization_config["dequantize"] = True
    assert_same_weights(type(model).from_pretrained(folder, config=config), model)


def test_a_packed_model_says_how_it_can_be_trained(tmp_path):
    model, _, folder = save_both(tmp_path)
    packed = type(model).from_pretrained(folder)
    assert packed.hf_quantizer.is_serializable() and not packed.hf_quantizer.is_trainable
    with pytest.raises(ValueError, match=r"are packed.*dequantize=True"):
        nxm_hf.prune(packed, "2:4")


@pytest.mark.parametrize(
    ("tensor", "change"),
    [
        ("weight_nxm_idx", lambda indices: indices * 0),
        ("weight_nxm_idx", lambda indices: indices[:, 1:].contiguous()),
        ("weight_nxm_idx", lambda indices: None),
        ("weight", lambda values: values[:, 1:].contiguous()),
        ("weight", lambda values: None),
    ],
)
@pytest.mark.parametrize("options", [{}, {"ignore_mismatched_sizes": True}, {"quantization_config": DENSE}])
def test_damage_is_an_error_that_names_the_layer(tensor, change, options, tmp_path):
    model, _, folder = save_both(tmp_path)
    damage(folder, f"{QUERY}.{tensor}", change)
    with pytest.raises((ValueError, RuntimeError)) as error:
        type(model).from_pretrained(folder, **options)
    text = str(error.value)
    assert any(words in text for words in (QUERY, "ignore_mismatched_sizes", "size mismatch"))  # of transformers
    assert not verify(folder).ok  # by the manifest; without one the layer itself tells
    (folder / MANIFEST_FILE).unlink()
    with pytest.raises(ValueError, match=QUERY):
        verify(folder)


def test_a_weight_of_another_shape_beside_the_packed_ones_is_an_error(tmp_path):
    model, _, folder = save_both(tmp_path)
    damage(folder, "classifier.weight", lambda weight: weight[:1].contiguous())
    with pytest.raises((ValueError, RuntimeError), match=r"classifier\.weight|ignore_mismatched_sizes|size mismatch"):
        type(model).from_pretrained(folder)


def test_a_torn_file_is_an_error(tmp_path):
    model, _, folder = save_both(tmp_path)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Exception, match=r"incomplete|InvalidHeader|MetadataIncomplete|not fully covered"):
        type(model).from_pretrained(folder)
    assert not verify(folder).ok  # by the manifest; without one the file itself tells
    (folder / MANIFEST_FILE).unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        verify(folder)


def test_a_config_of_a_newer_version_or_with_another_pattern_is_refused():
    with pytest.raises(ValueError, match=r"is of version 2.*pip install --upgrade"):
        NxMPackedConfig(format_version=2)
    with pytest.raises(ValueError, match="has blocks, which this nxm_hf cannot read"):
        NxMPackedConfig(blocks=1)
    with pytest.raises(ValueError, match=r"layer\.0 unstructured:0\.5"):
        NxMPackedConfig({"layer.0": "unstructured:0.5"})
    config = NxMPackedConfig({"layer.0": "2:4"}, ["layer.0"], {"layer.0": "old.0"})
    assert NxMPackedConfig(**config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    "damage",
    [
        {"layers": 5},
        {"layers": ["x"]},
        {"layers": {QUERY: 5}},
        {"files": {QUERY: ["x"]}},
        {"transposed": 7},
        {"transposed": [5]},
        {"dequantize": "x"},
        {"after_loading": "os.system"},
    ],
    ids=str,
)
def test_a_setting_of_another_type_is_refused(damage):
    with pytest.raises(ValueError, match=rf"damaged: {next(iter(damage))} cannot be read"):
        NxMPackedConfig(**{"layers": {QUERY: "2:4"}, **damage})


@pytest.mark.parametrize(
    "name", ["bert.embeddings.word_embeddings", "bert.encoder.layer.0.output.LayerNorm", "bert", ""]
)
def test_a_config_that_says_that_another_module_is_packed_is_refused(name, tmp_path):
    model, _, folder = save_both(tmp_path)
    payload = json.loads((folder / "config.json").read_text())
    payload["quantization_config"]["layers"][name] = "2:4"
    (folder / "config.json").write_text(json.dumps(payload))
    kind = type(model.get_submodule(name)).__name__
    with pytest.raises(ValueError, match=f"cannot be packed: {name or 'the model'} is a {kind}"):
        type(model).from_pretrained(folder)


def test_the_config_has_no_key_that_other_servers_refuse(tmp_path):
    _, _, folder = save_both(tmp_path)
    text = (folder / "config.json").read_text()
    assert '"quant_method": "nxm"' in text and "sparsity_config" not in text


PLAIN_PROCESS = """
import sys
from transformers import AutoModelForSequenceClassification
try:
    AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
except RuntimeError as error:
    assert not any(name.startswith("nxm_hf") for name in sys.modules)
    print("refused:", error)
"""


@pytest.mark.slow
def test_without_the_library_transformers_refuses_the_directory(tmp_path):
    """It must not fill in random weights."""
    _, _, folder = save_both(tmp_path)
    run = subprocess.run(
        [sys.executable, "-c", PLAIN_PROCESS, str(folder)], capture_output=True, text=True, check=True, env=os.environ
    )
    assert "refused:" in run.stdout and "got nxm" in run.stderr and "mismatch" in (run.stdout + run.stderr).lower()


IMPORTS = ("import nxm_hf", "from transformers import AutoModelForSequenceClassification as Auto")


@pytest.mark.slow
@pytest.mark.parametrize("lines", [IMPORTS, IMPORTS[::-1]])
def test_importing_the_library_is_enough_to_load_a_packed_model(lines, tmp_path):
    _, _, folder = save_both(tmp_path)
    code = "; ".join([*lines, f"print(type(Auto.from_pretrained({str(folder)!r}).get_submodule({QUERY!r})).__name__)"])
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert run.stdout.strip() == "PackedLinear"


class LargestTensor(TorchDispatchMode):
    """Note the bytes of the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not result.is_meta:
            self.largest = max(self.largest, result.nbytes)
        return result


@not_in_4("makes each layer dense before it moves it to the meta device")
def test_the_dense_model_is_never_in_memory_beside_the_packed_one(tmp_path):
    """No tensor of a dense layer's size is made while packed layers are loaded."""
    model, _, folder = save_both(tmp_path)
    dense_bytes = max(parameter.nbytes for name, parameter in model.named_parameters() if "layer" in name)
    with LargestTensor() as sizes:
        type(model).from_pretrained(folder)
    assert 0 < sizes.largest < dense_bytes
