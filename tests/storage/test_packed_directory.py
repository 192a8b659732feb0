"""Packing directories: nothing is lost, nothing is half written, and what cannot be packed is refused."""

import errno
import json
import os

import pytest
import torch
from transformers import AutoConfig, AutoModel

import nxm_hf
from nxm_hf.layers.find import find_layers
from nxm_hf.packing import PackedLinear, names_in_files, read_packed_config
from nxm_hf.pruning.directory import prune_directory
from nxm_hf.storage.inspect import inspect
from nxm_hf.storage.manifest import MANIFEST_FILE, record_model, remove_manifest
from nxm_hf.storage.packed_directory import (
    PackingResult,
    pack_directory,
    pack_in_place,
    save_packed,
    unpack_directory,
)
from nxm_hf.storage.verify import verify
from tests.support.model_types import MIXTURES, MODEL_TYPES
from tests.support.models import SHAPE, make_bert, make_model
from tests.support.packed_models import FAMILIES, damage, save_both, tensors_of
from tests.support.saved_models import QUERY, edit_config, edit_weights
from tests.support.saving import hashes_of
from tests.support.versions import not_in_4

SAVING = "transformers.PreTrainedModel"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", ["1GB", "30KB"])
def test_unpacking_gives_back_every_byte_of_the_weights_and_the_config(family, size, tmp_path):
    _, plain, packed = save_both(tmp_path, family, max_shard_size=size)
    unpack_directory(packed, tmp_path / "again")
    before, after = hashes_of(plain), hashes_of(tmp_path / "again")
    weights = [name for name in before if name.endswith(".safetensors")]
    assert weights and all(after[name] == before[name] for name in weights)
    for name in before.keys() - set(weights) - {"README.md"}:
        assert json.loads((plain / name).read_text()) == json.loads((tmp_path / "again" / name).read_text())
    assert hashes_of(packed).keys() - {"README.md", MANIFEST_FILE} == before.keys() - {"README.md"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_result_says_what_was_gained(dtype, tmp_path):
    model = make_bert().to(dtype)
    nxm_hf.prune(model, "2:4")
    model.save_pretrained(tmp_path / "plain")
    result = pack_directory(tmp_path / "plain", tmp_path / "packed")
    assert result.packed_bytes / result.plain_bytes == (0.53125 if dtype is torch.float32 else 0.5625)
    assert len(result.layers) == 12 and not result.left_plain
    assert result.bytes_after == (tmp_path / "packed" / "model.safetensors").stat().st_size < result.bytes_before
    assert str(result).startswith("12 layers: ") and f"{result.bytes_after:,} after" in str(result)
    assert "(53.12%)" in str(result) or "(56.25%)" in str(result)


def test_negative_zeros_in_a_group_with_room_survive(tmp_path):
    """A model with one weight in each group is recorded as 2:4, and one of its zeros is -0.0."""
    model, plain, _ = save_both(tmp_path, pattern="1:4")
    record = json.loads((plain / "config.json").read_text())["nxm_config"]
    edit_config(plain, nxm_config={**record, "pattern": "2:4", "layers": dict.fromkeys(record["layers"], "2:4")})
    row = model.get_submodule(QUERY).weight[0]
    column = int((row == 0).nonzero()[0])
    edit_weights(plain, lambda weights: weights[f"{QUERY}.weight"][0, column].fill_(-0.0))
    pack_directory(plain, tmp_path / "b")
    unpack_directory(tmp_path / "b", tmp_path / "c")
    assert tensors_of(tmp_path / "c")[f"{QUERY}.weight"][0, column].signbit()
    assert hashes_of(tmp_path / "c")["model.safetensors"] == hashes_of(plain)["model.safetensors"]


def test_files_beside_the_weights_are_copied_and_the_card_says_how_to_load(tmp_path):
    _, plain, _ = save_both(tmp_path)
    (plain / "tokenizer.json").write_text("{}")
    (plain / "nxm_pruning.json").write_text("{}")
    pack_directory(plain, tmp_path / "b")
    assert {"tokenizer.json", "nxm_pruning.json", "README.md"} <= hashes_of(tmp_path / "b").keys()
    card = (tmp_path / "b" / "README.md").read_text()
    for part in (
        "# b\n",
        "`import nxm_hf` before `from_pretrained`",
        "34,816 bytes instead of 65,536 (53.1%)",
        "nxm unpack",
    ):
        assert part in card
    unpack_directory(tmp_path / "b", tmp_path / "c")
    assert "plain weights with zeros" in (tmp_path / "c" / "README.md").read_text()
    assert "packed:" not in (tmp_path / "c" / "README.md").read_text()


def test_a_packed_directory_is_verified_inspected_and_pruned_like_a_plain_one(tmp_path):
    _, plain, packed = save_both(tmp_path)
    assert f"{verify(packed)}\n{verify(plain).note}" == str(verify(plain)), "packing writes a manifest"
    assert str(inspect(packed)) == str(inspect(plain)).replace(str(plain), str(packed))
    prune_directory(packed, tmp_path / "1of4", "1:4")
    assert read_packed_config(tmp_path / "1of4") is None and verify(tmp_path / "1of4").ok
    remove_manifest(packed)
    damage(packed, f"{QUERY}.weight_nxm_idx", lambda indices: indices * 0)
    for read in (verify, inspect, lambda folder: unpack_directory(folder, tmp_path / "no")):
        with pytest.raises(ValueError, match=f"{QUERY} is damaged"):
            read(packed)
    assert not (tmp_path / "no").exists()


def test_a_directory_whose_files_have_changed_is_neither_packed_nor_unpacked(tmp_path):
    _, plain, packed = save_both(tmp_path)
    record_model(plain)
    for folder, act in ((plain, pack_directory), (packed, unpack_directory)):
        edit_weights(folder, lambda weights: weights["classifier.bias"].fill_(1.0))
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            act(folder, tmp_path / "x")
    assert not (tmp_path / "x").exists()


@not_in_4("has no stacks of experts whose form is known")
def test_each_sparse_layer_that_stays_plain_has_its_reason(tmp_path):
    model = next(kind for kind in MIXTURES if kind.name == "mixtral").model(0)
    nxm_hf.prune(model, "2:4")
    model.save_pretrained(tmp_path / "plain")
    stacks = {layer.name for layer in find_layers(model) if layer.holds_experts}
    packed = pack_directory(tmp_path / "plain", tmp_path / "packed")
    assert stacks and packed.left_plain == dict.fromkeys(stacks, "it holds the matrices of several experts")
    assert packed.layers.keys() == {layer.name for layer in find_layers(model)} - stacks


@pytest.mark.parametrize("pattern", ["unstructured:0.5", "block:4:0.5"])
def test_other_patterns_are_refused_with_advice(pattern, tmp_path):
    model = make_bert()
    nxm_hf.prune(model, pattern)
    model.save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match=rf"Nothing in .*{pattern}.*zstd model\.safetensors"):
        pack_directory(tmp_path / "plain", tmp_path / "packed")
    assert not (tmp_path / "packed").exists() and len(list(tmp_path.iterdir())) == 1


def test_layers_with_other_patterns_stay_plain_beside_packed_ones(tmp_path):
    _, plain, packed = save_both(tmp_path, pattern={"ffn": "2:4", "default": "unstructured:0.5"})
    assert len(read_packed_config(packed).layers) == 4 and verify(packed).ok
    result = unpack_directory(packed, tmp_path / "again")
    assert hashes_of(tmp_path / "again")["model.safetensors"] == hashes_of(plain)["model.safetensors"]
    assert result.packed_bytes < result.plain_bytes
    left = pack_directory(plain, tmp_path / "b").left_plain
    assert len(left) == 8 and "unstructured:0.5" in left[QUERY]


def test_convolutions_are_refused(tmp_path):
    model = make_model("squeezebert")
    nxm_hf.prune(model, "2:4")
    model.save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="it is a Conv1d and not a Linear"):
        pack_directory(tmp_path / "plain", tmp_path / "packed")


def test_layers_that_a_family_saves_joined_stay_plain(tmp_path):
    """NomicBert has three projections in memory, and one in its files."""
    config = AutoConfig.for_model("nomic_bert", **{**SHAPE, "num_hidden_layers": 1}, max_position_embeddings=16)
    model = AutoModel.from_config(config)
    nxm_hf.prune(model, "2:4")
    model.save_pretrained(tmp_path / "plain")
    result = pack_directory(tmp_path / "plain", tmp_path / "packed")
    assert result.layers and {name.rsplit(".")[-1] for name in result.left_plain} == {"q_proj", "k_proj", "v_proj"}
    assert set(result.left_plain.values()) == {"its family saves it joined with another layer"}
    loaded = type(model).from_pretrained(tmp_path / "packed").dequantize().state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())
    assert set(verify(tmp_path / "packed").layers) == set(verify(tmp_path / "plain").layers)


@not_in_4("converts no weights")
@pytest.mark.parametrize("name", ["dinov2", "deit", "gte"])
def test_every_layer_that_is_saved_alone_is_packed_whether_its_name_changes_or_not(name, tmp_path):
    """DINOv2 saves some of its layers under their own names, DeiT none, and GTE joins some."""
    model = next(kind for kind in MODEL_TYPES if kind.name == name).model(0)
    nxm_hf.prune(model, "2:4")
    model.save_pretrained(tmp_path / "plain")
    names = names_in_files(model, [layer.name for layer in find_layers(model)])
    result = pack_directory(tmp_path / "plain", tmp_path / "packed")
    assert result.layers.keys() == names.keys() and names
    packed = tensors_of(tmp_path / "packed")
    assert {f"{each}.weight_nxm_idx" for each in names.values()} == {key for key in packed if key.endswith("_nxm_idx")}
    unpack_directory(tmp_path / "packed", tmp_path / "again")
    assert hashes_of(tmp_path / "again")["model.safetensors"] == hashes_of(tmp_path / "plain")["model.safetensors"]


def test_what_is_not_sparse_or_packed_already_is_refused(tmp_path):
    make_bert().save_pretrained(tmp_path / "dense")
    _, plain, packed = save_both(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no record of being sparse.*nxm convert"):
        pack_directory(tmp_path / "dense", tmp_path / "x")
    with pytest.raises(ValueError, match="is packed already"):
        pack_directory(packed, tmp_path / "x")
    with pytest.raises(ValueError, match="is not packed"):
        unpack_directory(plain, tmp_path / "x")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        pack_directory(tmp_path / "nowhere", tmp_path / "x")
    says = r"^This BertForSequenceClassification has no record of being sparse, so it cannot be packed\. Make it"
    with pytest.raises(ValueError, match=says):
        save_packed(make_bert(), tmp_path / "x")
    edit_config(plain, quantization_config={"quant_method": "gptq"})
    with pytest.raises(ValueError, match="is quantized"):
        pack_directory(plain, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_weights_that_break_the_pattern_leave_nothing_behind(tmp_path):
    _, plain, _ = save_both(tmp_path)
    edit_weights(plain, lambda weights: weights[f"{QUERY}.weight"].fill_(1.0))
    with pytest.raises(ValueError, match=rf"{QUERY} breaks 2:4 in 256 groups"):
        pack_directory(plain, tmp_path / "x")
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "packed"}


def test_a_target_that_is_there_is_refused(tmp_path):
    model, plain, packed = save_both(tmp_path)
    for write in (lambda: pack_directory(plain, packed), lambda: unpack_directory(packed, plain)):
        with pytest.raises(ValueError, match="is there already, and nothing is overwritten"):
            write()
    with pytest.raises(ValueError, match="is there already"):
        save_packed(model, packed)


@pytest.mark.parametrize("size", ["1GB", "30KB"])
def test_a_model_in_memory_is_saved_packed(size, tmp_path):
    model, _, packed = save_both(tmp_path, "gpt2", max_shard_size=size)
    result = save_packed(model, tmp_path / "b", max_shard_size=size)
    assert result.packed_bytes / result.plain_bytes == 0.53125
    ours, theirs = tensors_of(tmp_path / "b"), tensors_of(packed)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (len(list((tmp_path / "b").glob("*.safetensors"))) > 1) == (size == "30KB")
    loaded = type(model).from_pretrained(tmp_path / "b")
    assert any(isinstance(module, PackedLinear) for module in loaded.modules())
    again = save_packed(loaded, tmp_path / "c")
    assert again.layers == result.layers and again.packed_bytes == result.packed_bytes
    assert tensors_of(tmp_path / "c").keys() == theirs.keys() and verify(tmp_path / "c").ok
    assert "`import nxm_hf` before `from_pretrained`" in (tmp_path / "c" / "README.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "packed", "b", "c"}


def test_a_directory_with_other_files_is_packed_in_place(tmp_path):
    _, plain, packed = save_both(tmp_path)
    nxm_hf.SparsityRecord.from_pretrained(plain).save_pretrained(plain)
    (plain / "trainer_state.json").write_text("{}")
    pack_in_place(plain)
    pack_in_place(plain)
    assert tensors_of(plain).keys() == tensors_of(packed).keys() and verify(plain).ok
    assert (plain / "trainer_state.json").is_file() and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("act", ["pack", "unpack", "save", "save packed"])
def test_a_full_disk_is_named_with_the_room_that_is_needed_and_nothing_is_left(act, tmp_path, monkeypatch):
    model, plain, packed = save_both(tmp_path)
    size, smaller = ((folder / "model.safetensors").stat().st_size for folder in (plain, packed))
    loaded = type(model).from_pretrained(packed)
    sizes = [sum(parameter.nbytes for parameter in each.parameters()) for each in (model, loaded)]
    run, broken, needed = {
        "pack": (lambda: pack_directory(plain, tmp_path / "b"), "os.rename", size),
        "unpack": (lambda: unpack_directory(packed, tmp_path / "b"), "os.rename", 2 * smaller),
        "save": (lambda: save_packed(model, tmp_path / "b"), f"{SAVING}.save_pretrained", 2 * sizes[0]),
        "save packed": (lambda: save_packed(loaded, tmp_path / "b"), "shutil.copytree", 2 * sizes[1]),
    }[act]

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(broken, fail)
    says = rf"could not be written: No space left on device\. {tmp_path}/b is as it was.* need {needed:,} bytes, and "
    with pytest.raises(OSError, match=says):
        run()
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "packed"}


def test_packing_in_place_replaces_the_weights_the_config_and_the_card_alone(tmp_path):
    _, plain, packed = save_both(tmp_path, max_shard_size="30KB")
    nxm_hf.SparsityRecord.from_pretrained(plain).save_pretrained(plain)
    (plain / "notes.txt").write_text("mine")
    before = hashes_of(plain)
    pack_in_place(plain)
    after = hashes_of(plain)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    weights = {name for name in before if name.startswith("model")}
    assert changed - {MANIFEST_FILE} <= weights | {path.name for path in packed.glob("model*")} | {
        "config.json",
        "README.md",
    }
    assert {"config.json", "README.md"} <= changed and after["notes.txt"] == before["notes.txt"]
    assert [name for name in after if name.startswith("model")] == [
        name for name in hashes_of(packed) if name.startswith("model")
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "packed"} and not (plain / "packed").exists()


def test_a_result_says_what_was_left_plain_and_why():
    result = PackingResult({"a": "2:4"}, 2000, 1100, 5000, 4100, {"b": "it is a Conv1d and not a Linear"})
    assert str(result).splitlines() == [
        "1 layers: 1,100 bytes packed, 2,000 as plain weights (55.00%).",
        "All weights: 5,000 bytes before, 4,100 after (82.0%).",
        "Not packed: b, it is a Conv1d and not a Linear.",
    ]
    assert "(0.00%)" in str(PackingResult({}, 0, 0, 0, 0, {})) and "(0.0%)" in str(PackingResult({}, 0, 0, 0, 0, {}))
