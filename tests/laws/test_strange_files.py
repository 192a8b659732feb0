"""Files that no save writes: links to devices, odd encodings, huge numbers. Every look ends, in a sentence at worst."""

import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nxm_hf import prune
from nxm_hf.pruning.directory import prune_directory
from nxm_hf.storage.checkpoints import missing_parts
from nxm_hf.storage.inspect import inspect
from nxm_hf.storage.manifest import MANIFEST_FILE, write_manifest
from nxm_hf.storage.verify import verify
from tests.support.models import make_bert
from tests.support.saved_models import edit_config, edit_weights

CONFIG, WEIGHTS = "config.json", "model.safetensors"
OK = ""  # in place of the text of an error
UNREAD = r"is not JSON|cannot be read"
NO_CONFIG = r"holds no config\.json"
NO_MODEL = r"is not the config of a model"
NO_WEIGHTS = r"holds neither model\.safetensors nor"


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    """The directory of a sparse model."""
    folder = tmp_path_factory.mktemp("sparse") / "model"
    prune(model := make_bert(), "2:4")
    model.save_pretrained(folder)
    return folder


def config(**changes) -> Callable[[Path], None]:
    """Return what changes keys of a config."""
    return lambda folder: edit_config(folder, **changes)


def record(**changes) -> Callable[[Path], None]:
    """Return what changes keys of the record of a model; `layers` is the pattern of each of its layers."""

    def change(folder: Path) -> None:
        own = json.loads((folder / CONFIG).read_text())["nxm_config"]
        if isinstance(pattern := changes.get("layers"), str):
            changes["layers"] = dict.fromkeys(own["layers"], pattern)
        edit_config(folder, nxm_config={**own, **changes})

    return change


def linked(name: str, to: str) -> Callable[[Path], None]:
    """Return what puts a link in the place of a file."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.symlink(to, folder / name)

    return change


def written(name: str, content: object) -> Callable[[Path], object]:
    """Return what writes JSON into a file."""
    return lambda folder: (folder / name).write_text(json.dumps(content))


def recoded(name: str, encode: Callable[[str], bytes]) -> Callable[[Path], object]:
    """Return what writes the text of a file in another way."""
    return lambda folder: (folder / name).write_bytes(encode((folder / name).read_text()))


def header(**changes) -> Callable[[Path], None]:
    """Return what changes the entry of the first matrix in the header of the weights."""

    def change(folder: Path) -> None:
        content = (folder / WEIGHTS).read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        entries = json.loads(content[8 : 8 + length])
        next(entry for entry in entries.values() if len(entry.get("shape", ())) == 2).update(changes)
        text = json.dumps(entries).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    return change


def manifest(**changes) -> Callable[[Path], None]:
    """Return what writes a manifest with other entries."""

    def change(folder: Path) -> None:
        write_manifest(folder)
        payload = json.loads((folder / MANIFEST_FILE).read_text())
        (folder / MANIFEST_FILE).write_text(json.dumps({**payload, **changes}))

    return change


def as_directory(folder: Path) -> None:
    (folder / CONFIG).unlink()
    (folder / CONFIG).mkdir()


def long_manifest(folder: Path) -> None:
    (folder / MANIFEST_FILE).write_text("{")
    os.truncate(folder / MANIFEST_FILE, 2**33)  # without a byte on the disk


def many_layers(folder: Path) -> None:
    """Name as many tensors as there are to be layers; each is one number."""
    tiny = {f"bert.encoder.layer.{number}.x": torch.zeros(1) for number in range(3000)}
    save_file(load_file(folder / WEIGHTS) | tiny, folder / WEIGHTS)
    edit_config(folder, num_hidden_layers=2900)


def with_controls(weights: dict) -> None:
    for name in list(weights):
        weights[f"{name}\x1b[2J"] = weights.pop(name)


def adapter(folder: Path) -> None:
    """Add an adapter of no kind, without a base, and without a byte."""
    config = {"base_model_name_or_path": ["x"], "peft_type": 5, "r": 10**9}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(b"")


def saving(folder: Path) -> None:
    (folder / ".nxm_saving_complete").mkdir()
    (folder / ".nxm_saving_complete" / "lists.json").write_text("[[[")


MODULES = [{"idx": 0, "name": "0", "path": "../../../../etc", "type": "os.system"}] * 1000
QUANTIZED = {"quant_method": "nxm", "bits": -1, "x": [[[]]]}
ITSELF = {MANIFEST_FILE: {"size": 1, "digest": "0"}}
CASES = {
    "a config in UTF-16": (recoded(CONFIG, lambda text: text.encode("utf-16")), UNREAD),
    "a config that begins with its encoding": (recoded(CONFIG, lambda text: text.encode("utf-8-sig")), UNREAD),
    "half a pair of surrogates": (config(nxm_note="\ud800"), OK),
    "a config that is a directory": (as_directory, NO_CONFIG),
    "a config that is a link to itself": (linked(CONFIG, CONFIG), NO_CONFIG),
    "a config that never ends": (linked(CONFIG, "/dev/zero"), NO_CONFIG),
    "weights that never end": (linked(WEIGHTS, "/dev/zero"), NO_WEIGHTS),
    "weights of chance": (linked(WEIGHTS, "/dev/random"), NO_WEIGHTS),
    "weights of 64 GiB without a byte": (lambda folder: os.truncate(folder / WEIGHTS, 2**36), UNREAD),
    "a manifest of 8 GiB without a byte": (long_manifest, OK),
    "a manifest that names itself": (manifest(files=ITSELF), OK),
    "a key that comes twice": (recoded(CONFIG, lambda text: text.replace("{", '{"hidden_size": 9, ', 1).encode()), OK),
    "tensors that overlap": (header(data_offsets=[0, 4096]), UNREAD),
    "a shape of nothing and more than all": (header(shape=[0, 2**62]), UNREAD),
    "a shape beyond 64 bits": (header(shape=[2**63, 2]), UNREAD),
    "names that clear the screen": (lambda folder: edit_weights(folder, with_controls), r"\\x1b\[2J', which cannot"),
    "as many numbers as layers": (many_layers, r"asks for more than 8,192 parameters, and the weights"),
    "a record of 10,000 layers": (record(layers={f"l{number}": "2:4" for number in range(10_000)}), OK),
    "a pattern of trillions": (record(pattern="1:999999999999", layers="1:999999999999"), "1 <= N < M"),
    "transposable tiles of thousands": (record(layers="8:16384-transposable"), "1 <= N < M"),
    "blocks of millions": (record(layers="block:1000000x1000000:0.5"), "does not split into"),
    "a number of 100,000 digits": (record(layers="1" * 100_000 + ":4"), "There is no pattern"),
    "a density that is no number": (record(layers="unstructured:nan"), "is not between 0 and 1"),
    "digits of another script": (record(layers="\u0662:\u0664"), "There is no pattern"),
    "an adapter of no kind": (adapter, r"adapter_model\.safetensors cannot be read"),
    "modules that are elsewhere": (written("modules.json", MODULES), OK),
    "bits below zero": (config(quantization_config=QUANTIZED), "cannot read"),
    "a quantization by a number": (config(quantization_config=5), NO_MODEL),
    "a type that is a function": (config(dtype="os.system", torch_dtype="__class__"), NO_MODEL),
    "an activation that imports": (config(hidden_act="__import__"), NO_MODEL),
    "a size below zero": (config(hidden_size=-32), NO_MODEL),
    "no heads": (config(num_attention_heads=0), NO_MODEL),
    "half a layer": (config(num_hidden_layers=2.5), NO_MODEL),
    "a number of layers in quotes": (config(num_hidden_layers="2"), NO_MODEL),
    "a save that was stopped in a list": (saving, OK),
    "no file at all": (lambda folder: [path.unlink() for path in folder.iterdir()], NO_CONFIG),
}  # fmt: skip


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs devices and links")
@pytest.mark.parametrize("case", CASES)
def test_every_look_ends_and_says_what_is_wrong(case, sparse, tmp_path, capfd):
    change, problem = CASES[case]
    folder = Path(shutil.copytree(sparse, tmp_path / "case"))
    change(folder)
    errors = {}
    looks = (verify, inspect, missing_parts)
    for look in (*looks, lambda folder: prune_directory(folder, tmp_path / "out", "2:4")):
        if look not in looks:  # which shows the names of a stranger, as transformers logs them
            assert "\x1b[2J" not in "".join(capfd.readouterr())
        try:
            look(folder)
        except (OSError, ValueError) as error:
            errors[look] = str(error)
    assert all(error and len(error) < 1500 and error.isprintable() for error in errors.values())
    assert re.search(problem, errors[verify]) if problem else verify not in errors
