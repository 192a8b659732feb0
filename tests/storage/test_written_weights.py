"""Comparison of files with weights in memory: every bit of every weight counts, wherever a block ends in it."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor, Shard

from nxm_hf.layers.find import find_layers
from nxm_hf.storage import file_blocks
from nxm_hf.storage.file_blocks import BLOCK, read_in_blocks
from nxm_hf.storage.written_weights import (
    FileComparison,
    WrittenWeight,
    WrittenWeights,
    given_parameters,
    other_parameters,
)
from tests.support.group_of_one import group_of_one
from tests.support.models import make_bert

SIZES = (1, 7, 8, 4096, BLOCK - 16, 2 * BLOCK + 3)


@pytest.fixture(scope="module")
def content():
    return torch.randint(256, (sum(SIZES) + 5 * len(SIZES),), dtype=torch.uint8).numpy()


def equal_in(path, content, weights) -> set[str]:
    """Return the names of the weights that a file holds."""
    path.write_bytes(content.tobytes())
    comparison = FileComparison(weights)
    read_in_blocks([(path, len(content), [comparison])])
    return comparison.equal()


@pytest.mark.parametrize("threads", [1, 3])
def test_a_byte_that_differs_is_seen_in_its_weight_and_in_no_other(threads, content, tmp_path, monkeypatch):
    monkeypatch.setattr(file_blocks.os, "cpu_count", lambda: threads)
    monkeypatch.setattr(file_blocks, "CHUNK", BLOCK)
    weights, begin = [], 0
    for size in SIZES:
        weights.append(WrittenWeight(str(size), begin, content[begin : begin + size].copy()))
        begin += size + 5
    names = {weight.name for weight in weights}
    assert equal_in(tmp_path / "file", content, weights[::-1]) == names
    for weight in weights:
        for at in {weight.begin, (weight.begin + weight.end) // 2, weight.end - 1}:
            changed = content.copy()
            changed[at] ^= 128
            assert equal_in(tmp_path / "file", changed, weights) == names - {weight.name}
        between = content.copy()
        between[weight.end : weight.end + 5] ^= 1
        assert equal_in(tmp_path / "file", between, weights) == names
    assert equal_in(tmp_path / "file", content[: weights[-1].end - 1], weights) == names - {weights[-1].name}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", ["1GB", "20KB"])
def test_the_weights_of_a_saved_model_are_found_equal_until_one_entry_changes_its_sign(dtype, size, tmp_path):
    model = make_bert().to(dtype)
    model.save_pretrained(tmp_path, max_shard_size=size)
    layers = find_layers(model)
    names = {layer.name for layer in layers}

    def equal() -> set[str]:
        written = WrittenWeights(tmp_path, layers)
        assert written.equal() == set(), "nothing has been read yet"
        written.read()
        return written.equal()

    assert equal() == names
    for layer in (layers[0], layers[-1]):
        layer.weight.data[-1, -1] *= -1
        assert equal() == names - {layer.name}
        layer.weight.data[-1, -1] *= -1


@pytest.mark.parametrize("size", ["1GB", "20KB"])
def test_layers_and_other_parameters_are_all_that_a_model_has_and_one_entry_of_each_counts(size, tmp_path):
    model = make_bert()
    model.save_pretrained(tmp_path, max_shard_size=size)
    layers = find_layers(model)
    others = other_parameters(model, layers)
    parameters = dict(model.named_parameters())
    assert sorted(each.key for each in (*layers, *others)) == sorted(parameters)
    assert all(each.name == each.key and each.weight is parameters[each.name] for each in others)
    both = [*layers, *others]
    for changed in (layers[1], others[0], others[-1]):
        written = WrittenWeights(tmp_path, both)
        assert written.by_file.keys() == {path.name for path in tmp_path.glob("*.safetensors")}
        changed.weight.data.view(-1)[-1] *= -1
        written.read()
        changed.weight.data.view(-1)[-1] *= -1
        assert written.differing() == {changed.name}
        assert written.equal() == {each.name for each in both} - {changed.name}
    wrapped = nn.ModuleDict({"_orig_mod": model})  # as `torch.compile` names it
    assert [each.key for each in other_parameters(wrapped, layers)] == [each.key for each in others]


def test_given_parameters_are_whole_tensors_of_the_model_under_all_of_their_names():
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "c": nn.Linear(4, 4)})
    model["b"].weight = model["a"].weight  # tied: a state dict holds a tensor under each name
    given = {**{name: value.double() for name, value in model.state_dict().items()}, "other": torch.ones(2)}
    given["a.bias"].requires_grad_()
    with group_of_one() as shards:
        given["c.weight"] = DTensor.from_local(given["c.weight"], shards.mesh, [Shard(0)])
        found = given_parameters(model, {f"_orig_mod.{name}": value for name, value in given.items()})
    assert {each.name for each in found} == {"a.weight", "a.bias", "b.weight", "b.bias", "c.bias"}
    assert all(torch.equal(each.weight, given[each.key]) and not each.weight.requires_grad for each in found)


def test_weights_of_another_type_shape_name_or_layout_are_left_to_others(tmp_path):
    model = make_bert()
    model.save_pretrained(tmp_path)
    layers = find_layers(model)
    weights = load_file(tmp_path / "model.safetensors")
    for change, layer in zip(
        (lambda w: w.half(), lambda w: w.reshape(-1), lambda w: None, lambda w: w), layers, strict=False
    ):
        if (changed := change(weights.pop(layer.key))) is not None:
            weights[layer.key] = changed
    save_file(weights, tmp_path / "model.safetensors")
    layers[3].weight.data = layers[3].weight.data.t().contiguous().t()
    layers[4].module.weight = nn.Parameter(layers[4].weight.to("meta"))
    written = WrittenWeights(tmp_path, layers)
    written.read()
    assert written.equal() == {layer.name for layer in layers[5:]} and written.differing() == set()
    assert WrittenWeights(tmp_path, []).by_file == {}
