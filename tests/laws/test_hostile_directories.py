"""Directories from strangers: whatever is in the files, `verify` and `inspect` end soon, and say what is wrong."""

import json
import os
import random
import shutil
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch

from nxm_hf import prune
from nxm_hf.cli.main import main as nxm
from nxm_hf.storage.inspect import inspect
from nxm_hf.storage.manifest import MANIFEST_FILE, write_manifest
from nxm_hf.storage.verify import verify
from tests.support.models import make_bert
from tests.support.saved_models import edit_config, edit_weights

CASES = 200
DEEP = "[" * 50_000
STRANGE = (None, True, -1, 0, 5, 10**7, 10**400, 1.5, float("nan"), "", "x", "../../x", "/etc/passwd", "re:(a+)+$")
STRANGE += ([], [5], ["x"] * 3, {}, {"a": {"b": {}}}, [[[]]], {"": None})


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    """The directory of a sparse model, with an index."""
    folder = tmp_path_factory.mktemp("sparse") / "model"
    prune(model := make_bert(), "2:4")
    model.save_pretrained(folder, max_shard_size="60KB")
    shutil.copy(folder / "config.json", folder / "nxm_config.json")
    payload = json.loads((folder / "config.json").read_text())["nxm_config"]
    (folder / "nxm_config.json").write_text(json.dumps(payload))
    write_manifest(folder)
    return folder


def places(payload, path=()) -> list[tuple]:
    """Return the paths of all values of a JSON document."""
    inner = payload.items() if isinstance(payload, dict) else enumerate(payload) if isinstance(payload, list) else ()
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


def change_json(path: Path, chance: random.Random) -> None:
    """Put a strange value at one place of a JSON file, or damage its text."""
    text = path.read_text()
    if chance.random() < 0.15:
        at = chance.randrange(len(text))
        path.write_text(chance.choice([DEEP, text[:at], text[:at] + DEEP + text[at:], "", "\0" * 9]))
        return
    payload = json.loads(text)
    *way, last = chance.choice(places(payload)[1:])
    holder = payload
    for key in way:
        holder = holder[key]
    if chance.random() < 0.1:
        del holder[last]
    else:
        holder[last] = chance.choice(STRANGE)
    path.write_text(json.dumps(payload))


def change_header(path: Path, chance: random.Random) -> None:
    """Change the header of a safetensors file, or the length that it says it has."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    name = chance.choice(sorted(header))
    header[name] = chance.choice([*STRANGE, {"dtype": "F8_E4M3", "shape": [2**40], "data_offsets": [0, 1]}])
    text = json.dumps(header).encode()
    size = chance.choice([len(text), 2**63, 0, len(text) + 9])
    path.write_bytes(struct.pack("<Q", size) + text + content[8 + length :])


def test_no_malformed_file_gives_a_traceback(sparse, tmp_path, capsys):
    chance = random.Random(0)
    names = ["config.json"] * 4 + ["nxm_config.json"] * 3 + ["model.safetensors.index.json"] * 2 + [MANIFEST_FILE]
    weights = sorted(path.name for path in sparse.glob("*.safetensors"))
    assert len(weights) > 1
    codes = []
    for case in range(CASES):
        folder = Path(shutil.copytree(sparse, tmp_path / "case"))
        name = chance.choice([*names, chance.choice(weights)])
        if chance.random() < 0.7 and name != MANIFEST_FILE:
            (folder / MANIFEST_FILE).unlink()
        (change_header if name.endswith(".safetensors") else change_json)(folder / name, chance)
        for look in (verify, inspect):
            try:
                look(folder)
            except (OSError, ValueError) as error:
                assert str(error) and len(str(error)) < 2000, (case, name)
            except Exception as error:
                text = (folder / name).read_text(errors="replace")[:2000]
                raise AssertionError((case, name, look.__name__, text)) from error
        codes.append(nxm(["verify", str(folder)]) if case % 10 == 0 else 0)
        shutil.rmtree(folder)
    assert set(codes) <= {0, 1, 2} and len(set(codes)) > 1


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 100_000},
        {"num_labels": 10**7},
        {"depths": [2, 10**6]},
        {"text_config": {"encoder_layers": 10**400}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_config_of_a_huge_model_is_refused_by_the_tensors_that_are_there(changes, sparse, tmp_path):
    folder = Path(shutil.copytree(sparse, tmp_path / "case", ignore=shutil.ignore_patterns(MANIFEST_FILE)))
    edit_config(folder, **changes)
    for look in (verify, inspect):
        with pytest.raises(ValueError, match=r"config\.json asks for .*=.*, and the weights beside it are \d+ tensors"):
            look(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
@pytest.mark.parametrize("name", ["config.json", "nxm_config.json", "modules.json", "model.safetensors.index.json"])
def test_nobody_waits_for_a_pipe(name, sparse, tmp_path):
    folder = Path(shutil.copytree(sparse, tmp_path / "case", ignore=shutil.ignore_patterns(MANIFEST_FILE)))
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    for look in (verify, inspect):
        try:
            look(folder)
        except (OSError, ValueError) as error:
            assert name in str(error) or "holds neither model.safetensors" in str(error)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", 5, None, ["x"], "x" * 5000, "."])
def test_an_index_names_files_beside_it_only(name, sparse, tmp_path):
    folder = Path(shutil.copytree(sparse, tmp_path / "case", ignore=shutil.ignore_patterns(MANIFEST_FILE)))
    shutil.copy(folder / "model-00001-of-00002.safetensors", tmp_path / "outside.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], name)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for look in (verify, inspect):
        with pytest.raises(ValueError, match=r"index\.json (names|cannot be read)") as error:
            look(folder)
        assert len(str(error.value)) < 600


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.int8, torch.bool])
def test_weights_of_any_type_are_counted_or_refused_in_a_sentence(dtype, tmp_path):
    if dtype not in safetensors.torch._SIZE:
        pytest.skip(f"this safetensors cannot write {dtype}")
    prune(model := make_bert(), "2:4")
    model.save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda weights: weights.update({k: v.to(dtype) for k, v in weights.items() if v.ndim == 2}))
    for look in (verify, inspect):
        if dtype is torch.complex64:
            with pytest.raises(ValueError, match=r"zeros cannot be counted \(torch\.complex64 has no order"):
                look(tmp_path)
        else:
            densities = [layer.density for layer in look(tmp_path).layers]
            assert all(0 <= density <= 0.5 for density in densities)
