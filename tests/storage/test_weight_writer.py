"""The writer of weights: safetensors reads what it writes."""

from weakref import ref

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nxm_hf.storage.file_digest import WriteDigest
from nxm_hf.storage.manifest import file_digests
from nxm_hf.storage.weight_writer import Entry, type_name, write_tensors

TENSORS = {
    "b": torch.randn(3, 4),
    "a": torch.randn(2, 3).bfloat16(),
    "c": torch.arange(5, dtype=torch.uint8),
    "d": torch.tensor(7),
    "e": torch.zeros(0, 4, dtype=torch.float16),
    "f": torch.tensor([True, False]),
    "g": torch.randn(4, 6).t(),
    "h": torch.randn(4).to(torch.float8_e4m3fn),
}
TYPES = {"b": "F32", "a": "BF16", "c": "U8", "d": "I64", "e": "F16", "f": "BOOL", "g": "F32", "h": "F8_E4M3"}
ENTRIES = [Entry(name, TYPES[name], tuple(tensor.shape)) for name, tensor in TENSORS.items()]


def test_safetensors_reads_what_was_written(tmp_path):
    order = []
    write_tensors(tmp_path / "x", ENTRIES, lambda name: order.append(name) or TENSORS[name], {"format": "pt"})
    assert sorted(order) == sorted(TENSORS)
    loaded = load_file(tmp_path / "x")
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape
        assert torch.equal(loaded[name].float(), tensor.float())
    with safe_open(tmp_path / "x", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_bytes_are_those_that_safetensors_writes(tmp_path):
    plain = {name: tensor.contiguous() for name, tensor in TENSORS.items() if name not in "efh"}
    save_file(plain, tmp_path / "theirs", metadata={"format": "pt"})
    entries = [entry for entry in ENTRIES if entry.name in plain]
    write_tensors(tmp_path / "ours", entries, plain.__getitem__, {"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("rows", [3, 300_000], ids=["a short file", "a long file"])
def test_the_digest_of_what_is_written_is_that_of_the_file(rows, tmp_path):
    tensors, digest = {**TENSORS, "b": torch.randn(rows, 4)}, WriteDigest()
    entries = [entry._replace(shape=tuple(tensors[entry.name].shape)) for entry in ENTRIES]
    write_tensors(tmp_path / "x", entries, tensors.__getitem__, {"format": "pt"}, digest)
    assert file_digests(tmp_path, "x") == {"x": digest.hexdigest()}


@pytest.mark.parametrize("digest", [None, WriteDigest()], ids=["without a digest", "with one"])
def test_no_tensor_is_in_memory_when_the_next_is_read(digest, tmp_path):
    living = []

    def read(name):
        assert [each() for each in living] == [None] * len(living)
        tensor = TENSORS[name].clone().requires_grad_(TENSORS[name].is_floating_point())
        living.append(ref(tensor.untyped_storage()))
        return tensor

    write_tensors(tmp_path / "x", ENTRIES, read, {}, digest)
    assert len(living) == len(ENTRIES) and living[-1]() is None


def test_a_tensor_of_another_size_than_promised_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="b has 4 bytes"):
        write_tensors(tmp_path / "x", [Entry("b", "F32", (3, 4))], lambda name: torch.zeros(1), {})


def test_names_and_widths_of_types_are_those_of_torch():
    for name, tensor in TENSORS.items():
        entry = Entry(name, type_name(tensor.dtype), tuple(tensor.shape))
        assert entry == ENTRIES[[*TENSORS].index(name)]
        assert (entry.width, entry.nbytes) == (tensor.element_size(), tensor.nbytes)
    for dtype in (torch.float64, torch.int8, torch.int16, torch.int32, torch.uint16, torch.float8_e5m2):
        assert Entry("x", type_name(dtype), (3,)).nbytes == torch.empty(3, dtype=dtype).nbytes


def test_a_file_without_metadata_says_nothing_of_it(tmp_path):
    write_tensors(tmp_path / "ours", ENTRIES[:1], TENSORS.__getitem__, {})
    save_file({"b": TENSORS["b"]}, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
