"""Places of tensors: the bytes there are the tensor, and a header that makes no sense has no places."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nxm_hf.storage import tensor_places as places
from nxm_hf.storage.tensor_places import tensor_places


def write(path, header, body=b"") -> None:
    """Write a file with a header, which may be text."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def test_the_bytes_at_a_place_are_those_of_the_tensor(tmp_path):
    tensors = {
        "a": torch.randn(3, 5),
        "b": torch.randn(7).bfloat16(),
        "none": torch.zeros(0, 4),
        "number": torch.tensor(3.0),
        "flags": torch.tensor([True, False]),
    }
    path = tmp_path / "file.safetensors"
    save_file(tensors, path, {"format": "pt"})
    content, found = path.read_bytes(), tensor_places(path)
    assert found.keys() == tensors.keys()
    for name, (entry, begin, end) in found.items():
        assert entry.name == name and entry.shape == tuple(tensors[name].shape)
        assert content[begin:end] == tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    "header",
    ["", "[]", "null", "{", "[" * 100_000, {"a": None}, {"a": 5}, {"a": {}}, {"a": [1]}, '{"a": {"dtype": "F32"}}'],
)
def test_a_header_that_cannot_be_read_has_no_places(header, tmp_path):
    write(tmp_path / "file", header, bytes(8))
    assert tensor_places(tmp_path / "file") == {}


@pytest.mark.parametrize("content", [b"", b"\5", b"\xff" * 8, (9).to_bytes(8, "little") + b"{}"])
def test_a_file_that_is_too_short_has_no_places(content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    assert tensor_places(tmp_path / "file") == {}


@pytest.mark.parametrize(
    "change",
    [
        {"data_offsets": [0, 4]},  # too few bytes
        {"data_offsets": [-8, 0]},
        {"data_offsets": [4, 12]},  # beyond the end
        {"data_offsets": [0, 8, 16]},
        {"data_offsets": [0.0, 8.0]},
        {"data_offsets": "08"},
        {"shape": [3]},
        {"shape": [-1, -2]},
        {"shape": [True, 2]},
        {"shape": [2.0]},
        {"shape": 2},
        {"dtype": "F64"},
        {"dtype": "X"},
        {"dtype": ""},
        {"dtype": None},
    ],
    ids=str,
)
def test_a_place_that_does_not_fit_its_tensor_or_its_file_is_left_out(change, tmp_path):
    good = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    write(tmp_path / "file", {"good": good, "bad": {**good, **change}}, np.arange(8, dtype=np.uint8).tobytes())
    assert tensor_places(tmp_path / "file").keys() == {"good"}


def test_a_file_may_end_with_its_header_which_may_be_as_long_as_safetensors_takes(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write(path, {"none": {"dtype": "F32", "shape": [0, 2], "data_offsets": [0, 0]}})
    assert places._MAX_HEADER == 10**8
    for limit, fits in ((path.stat().st_size - 8, True), (path.stat().st_size - 9, False)):
        monkeypatch.setattr(places, "_MAX_HEADER", limit)
        assert (tensor_places(path).keys() == {"none"}) == fits
