"""Reading weight files: plain tensors as they are, packed ones as the dense tensors that they stand for."""

import json
import shutil

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from nxm_hf.storage.weight_files import INDEX, WEIGHTS, WeightFiles, holds_weights, variants_in
from tests.support.models import make_bert
from tests.support.packed_models import damage, save_both, tensors_of

QUERY = "bert.encoder.layer.0.attention.self.query"


@pytest.mark.parametrize("family", ["bert", "gpt2", "vit"])
@pytest.mark.parametrize("size", ["1GB", "30KB"])
def test_a_packed_directory_reads_like_the_plain_one(family, size, tmp_path):
    _, plain, packed = save_both(tmp_path, family, max_shard_size=size)
    with WeightFiles(plain) as theirs, WeightFiles(packed) as ours:
        assert ours.shards == theirs.shards and ours.packed is not None and theirs.packed is None
        for names in theirs.shards.values():
            for name in names:
                assert name in ours and ours.entry(name) == theirs.entry(name)
                assert torch.equal(ours[name], theirs[name]) and ours[name].is_contiguous()
        for name in tensors_of(packed).keys() - tensors_of(plain).keys():
            assert name.endswith(".weight_nxm_idx") and name not in ours


@pytest.mark.parametrize("size", ["1GB", "30KB"])
def test_a_variant_that_is_alone_reads_like_plain_weights(size, tmp_path):
    model = make_bert()
    model.save_pretrained(tmp_path / "plain", max_shard_size=size)
    model.save_pretrained(tmp_path / "variant", max_shard_size=size, variant="fp16")
    assert variants_in(tmp_path / "variant") == ["fp16"] and variants_in(tmp_path / "plain") == []
    with WeightFiles(tmp_path / "plain") as theirs, WeightFiles(tmp_path / "variant") as ours:
        assert [*ours.shards.values()] == [*theirs.shards.values()]
        names = [name for shard in theirs.shards.values() for name in shard]
        assert len(names) > 12 and all(torch.equal(ours[name], theirs[name]) for name in names)
        assert (ours.variant, theirs.variant) == ("fp16", None) and (ours.index is None) == (size == "1GB")


def test_of_several_variants_none_is_read_and_plain_weights_come_first(tmp_path):
    for seed, variant in enumerate(["fp16", "bf16"]):
        make_bert(seed).save_pretrained(tmp_path, variant=variant)
    with (
        pytest.raises(FileNotFoundError, match=r"the variants bf16 and fp16, and no .*variant='bf16'"),
        WeightFiles(tmp_path),
    ):
        pass
    assert not holds_weights(tmp_path)
    (tmp_path / "model.fp32.safetensors").mkdir()  # a folder of such a name is no variant
    assert variants_in(tmp_path) == ["bf16", "fp16"]
    plain = make_bert(2)
    plain.save_pretrained(tmp_path)
    with WeightFiles(tmp_path) as files:
        assert torch.equal(files["classifier.weight"], plain.classifier.weight) and files.variant is None
    assert holds_weights(tmp_path)


def test_the_bytes_of_packed_layers_are_counted(tmp_path):
    _, plain, packed = save_both(tmp_path)
    with WeightFiles(packed) as files:
        ours, theirs = files.packed_bytes()
        stored, dense = tensors_of(packed), tensors_of(plain)
        assert ours == sum(
            stored[f"{name}.{part}"].nbytes for name in files.packed.layers for part in ("weight", "weight_nxm_idx")
        )
        assert theirs == sum(dense[f"{name}.weight"].nbytes for name in files.packed.layers)
        assert ours / theirs == 0.53125
    with WeightFiles(plain) as files:
        assert files.packed_bytes() == (0, 0)


def test_files_are_closed_at_the_end_of_the_block(tmp_path):
    make_bert().save_pretrained(tmp_path)
    with WeightFiles(tmp_path) as files:
        assert files["classifier.weight"].numel()
    with pytest.raises(SafetensorError, match="closed"):
        files["classifier.weight"]


@pytest.mark.parametrize("part", ["weight", "weight_nxm_idx"])
def test_a_packed_layer_without_a_part_is_an_error_that_names_it(part, tmp_path):
    _, _, packed = save_both(tmp_path)
    damage(packed, f"{QUERY}.{part}", lambda tensor: None)
    with WeightFiles(packed) as files, pytest.raises(ValueError, match=rf"{QUERY} is packed by config\.json.*{part}"):
        files[f"{QUERY}.weight"]


def test_damaged_indices_are_an_error_that_names_the_layer(tmp_path):
    _, _, packed = save_both(tmp_path)
    damage(packed, f"{QUERY}.weight_nxm_idx", lambda indices: indices * 0)
    with WeightFiles(packed) as files, pytest.raises(ValueError, match=f"{QUERY} is damaged"):
        files[f"{QUERY}.weight"]


@pytest.mark.parametrize("name", ["../outside.safetensors", "/outside.safetensors", 5, "absent.safetensors", "x" * 256])
def test_an_index_names_regular_files_beside_it(name, tmp_path):
    _, plain, _ = save_both(tmp_path)
    shutil.copy(plain / "model.safetensors", plain.parent / "outside.safetensors")
    shutil.move(plain / "model.safetensors", plain / "part.safetensors")
    for named in ("part.safetensors", str(plain.parent) + name if str(name).startswith("/") else name):
        (plain / INDEX).write_text(json.dumps({"weight_map": {f"{QUERY}.weight": named}}))
        if named == "part.safetensors":
            with WeightFiles(plain) as files:
                assert f"{QUERY}.weight" in files
            continue
        with pytest.raises(ValueError, match="which is no file beside it"), WeightFiles(plain):
            pass


@pytest.mark.parametrize(
    "content", ["", "[]", "5", "{}", '{"weight_map": 5}', '{"weight_map": {"a": []}}', "[" * 10**5]
)
def test_an_index_that_cannot_be_read_is_an_error_that_names_it(content, tmp_path):
    (tmp_path / INDEX).write_text(content)
    with (
        pytest.raises(ValueError, match=rf"{INDEX} cannot be read \(.*\)\. Save the model again"),
        WeightFiles(tmp_path),
    ):
        pass


def test_a_directory_without_weight_files_says_what_it_needs_and_what_to_do_with_a_pickle(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"holds neither {WEIGHTS} nor {INDEX}; it needs one of them\.$"):
        with WeightFiles(tmp_path):
            pass
    (tmp_path / "pytorch_model-00001-of-00002.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"them\. pytorch_model-00001-of-00002\.bin is a pickle: load it"):
        with WeightFiles(tmp_path):
            pass


def test_a_file_tells_its_metadata_and_whether_it_holds_a_name(tmp_path):
    save_file({"a": torch.zeros(2, 3)}, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with WeightFiles(tmp_path) as files:
        assert files.metadata(WEIGHTS) == {"format": "pt"} and files.shards == {WEIGHTS: ["a"]}
        assert "a" in files and "b" not in files and files.entry("a") == ("a", "F32", (2, 3))
    save_file({}, tmp_path / WEIGHTS)
    with WeightFiles(tmp_path) as files:
        assert files.shards == {WEIGHTS: []} and files.metadata(WEIGHTS) == {}
    (tmp_path / WEIGHTS).write_bytes(b"x" * 20)
    with pytest.raises(ValueError, match=rf"{WEIGHTS} cannot be read \(.*\)\. Save the model again"):
        with WeightFiles(tmp_path):
            pass


def test_a_name_that_clears_the_screen_is_refused_and_shown_as_text(tmp_path):
    save_file({"fine": torch.zeros(1), "odd\x1b[2J": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"'odd\\x1b\[2J', which cannot be printed") as error, WeightFiles(tmp_path):
        pass
    assert str(error.value).isprintable()


@pytest.mark.parametrize("values", [torch.tensor(1.0), torch.ones(16), torch.ones(1, 32, 16)])
def test_packed_values_that_are_no_matrix_are_an_error_that_names_the_layer(values, tmp_path):
    _, _, packed = save_both(tmp_path)
    damage(packed, f"{QUERY}.weight", lambda tensor: values)
    for look in (WeightFiles.__getitem__, WeightFiles.entry):
        with WeightFiles(packed) as files, pytest.raises(ValueError, match=rf"{QUERY} .* they need two dimensions"):
            look(files, f"{QUERY}.weight")
