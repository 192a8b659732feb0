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

from nxm_hf import prune, save_packed
from nxm_hf.cli.main import main as nxm
from nxm_hf.pruning.directory import prune_directory
from nxm_hf.pruning.result import RESULT_FILE
from nxm_hf.report.pruning_page import pruning_page
from nxm_hf.storage.checkpoints import missing_parts
from nxm_hf.storage.inspect import inspect
from nxm_hf.storage.manifest import MANIFEST_FILE, write_manifest
from nxm_hf.storage.packed_directory import unpack_directory
from nxm_hf.storage.state_file import STATE_FILE, read_state, write_state
from nxm_hf.storage.verify import verify
from tests.support.models import make_bert
from tests.support.saved_models import edit_config, edit_weights

CASES, PACKED_CASES = 500, 150
DEEP = "[" * 50_000
STRANGE = (None, True, -1, 0, 5, 10**7, 10**400, 1.5, float("nan"), "", "x", "../../x", "/etc/passwd", "re:(a+)+$")
CHECKPOINT = ("optimizer.pt", "rng_state.pth", STATE_FILE, "trainer_state.json")  # files of checkpoints alone
STRANGE += ([], [5], ["x"] * 3, {}, {"a": {"b": {}}}, [[[]]], {"": None})


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    """The directory of a sparse model, with an index, a state and the result of a pruning."""
    folder = tmp_path_factory.mktemp("sparse") / "model"
    result = prune(model := make_bert(), "2:4")
    model.save_pretrained(folder, max_shard_size="60KB")
    payload = json.loads((folder / "config.json").read_text())["nxm_config"]
    (folder / "nxm_config.json").write_text(json.dumps(payload))
    weight = model.bert.encoder.layer[0].output.dense.weight.detach()
    header = {"step": 1, "last": 1, "total_steps": 2, "seed": 0, "config": payload, "layers": payload["layers"]}
    write_state(folder, header, {"a/mask": weight != 0, "a/weight": weight})
    result.save(folder)
    write_manifest(folder)
    return folder


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The directory of a packed model."""
    folder = tmp_path_factory.mktemp("packed") / "model"
    prune(model := make_bert(), "2:4")
    save_packed(model, folder)
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
    """Change the header of a safetensors file, what a state says of itself there, or the length of the header."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    state = header.get("__metadata__", {}).get("nxm_state")
    if state is not None and chance.random() < 0.7:
        inner = path.with_name("header.json")
        inner.write_text(state)
        change_json(inner, chance)
        header["__metadata__"]["nxm_state"] = inner.read_text()
        inner.unlink()
    else:
        name = chance.choice(sorted(header))
        header[name] = chance.choice([*STRANGE, {"dtype": "F8_E4M3", "shape": [2**40], "data_offsets": [0, 1]}])
    text = json.dumps(header).encode()
    size = chance.choice([len(text), 2**63, 0, len(text) + 9])
    path.write_bytes(struct.pack("<Q", size) + text + content[8 + length :])


def change_tensor(path: Path, chance: random.Random) -> None:
    """Put other values, indices, types or shapes in the place of a tensor, or leave it out."""
    tensors = safetensors.torch.load_file(path)
    name = chance.choice([name for name in tensors if "layer.0" in name])
    tensor = tensors.pop(name)
    change = chance.choice([lambda t: t * 0, lambda t: t[..., :-1], torch.sum, torch.flatten, lambda t: t[None], None])
    if change is not None:
        types = (tensor.dtype, torch.uint8, torch.float8_e4m3fn, torch.complex64, torch.bool)
        dtype = chance.choice([each for each in types if each in safetensors.torch._SIZE])  # old ones write fewer
        tensors[name] = change(tensor).to(dtype).contiguous()
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


def _report(folder: Path) -> None:
    pruning_page([folder])


def test_no_malformed_file_gives_a_traceback(sparse, tmp_path, capsys):
    chance, codes = random.Random(0), []
    looks = {verify: "", inspect: "", missing_parts: "", read_state: STATE_FILE, _report: RESULT_FILE}
    names = ["config.json"] * 8 + ["nxm_config.json"] * 5 + ["model.safetensors.index.json"] * 3 + [MANIFEST_FILE] * 2
    names += [STATE_FILE] * 4 + [RESULT_FILE] * 2
    weights = sorted(path.name for path in sparse.glob("model*.safetensors"))
    assert len(weights) > 1
    for case in range(CASES):
        folder = Path(shutil.copytree(sparse, tmp_path / "case"))
        name = chance.choice([*names, *chance.choices(weights, k=2)])
        if chance.random() < 0.7 and name != MANIFEST_FILE:
            (folder / MANIFEST_FILE).unlink()
        (change_header if name.endswith(".safetensors") else change_json)(folder / name, chance)
        for look in [look for look, own in looks.items() if own in ("", name)]:
            try:
                look(folder)
            except (OSError, ValueError) as error:
                assert str(error) and len(str(error)) < 2000, (case, name)
            except Exception as error:
                text = (folder / name).read_text(errors="replace")[:2000]
                raise AssertionError((case, name, look.__name__, text)) from error
        codes.append(nxm(["verify", str(folder)]) if case % 10 == 0 else 0)
        assert not capsys.readouterr().out.count("Traceback")
        shutil.rmtree(folder)
    assert set(codes) <= {0, 1, 2} and len(set(codes)) > 1


def test_no_malformed_file_of_a_packed_model_gives_a_traceback(packed, tmp_path):
    chance, unread = random.Random(0), 0
    looks = (verify, inspect, lambda folder: unpack_directory(folder, tmp_path / "out"))
    for case in range(PACKED_CASES):
        folder = Path(shutil.copytree(packed, tmp_path / "case", ignore=shutil.ignore_patterns(MANIFEST_FILE)))
        if case % 3:
            name, text = "config.json", json.loads((folder / "config.json").read_text())
            (folder / name).write_text(json.dumps(text["quantization_config"]))
            change_json(folder / name, chance)
            changed = (folder / name).read_text()
            (folder / name).write_text(json.dumps({**text, "quantization_config": None}).replace("null", changed, 1))
        else:
            name = "model.safetensors"
            change_tensor(folder / name, chance)
        for look in looks:
            try:
                look(folder)
            except (OSError, ValueError) as error:
                assert str(error) and len(str(error)) < 2000, (case, name)
                unread += 1
            except Exception as error:
                raise AssertionError((case, name, (folder / "config.json").read_text()[-900:])) from error
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
        shutil.rmtree(folder)
    assert unread > PACKED_CASES


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
    for look in (verify, inspect, lambda folder: prune_directory(folder, tmp_path / "out", "2:4")):
        with pytest.raises(ValueError, match=r"config\.json asks for .*=.*, and the weights beside it are \d+ tensors"):
            look(folder)


def test_a_config_of_huge_matrices_is_refused_by_the_bytes_that_are_there(sparse, tmp_path):
    """A key that the files lack makes `verify` load the model whole, as of families that save under other names."""
    folder = Path(shutil.copytree(sparse, tmp_path / "case", ignore=shutil.ignore_patterns(MANIFEST_FILE)))
    edit_config(folder, hidden_size=2**20, intermediate_size=2**20)
    for look in (verify, inspect):
        with pytest.raises(
            ValueError, match=r"has the shape \(32, 32\) in the files of .* and \(1048576, 1048576\) by its config"
        ):
            look(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for name in (folder / name for name in {*index["weight_map"].values()}):
        weights = safetensors.torch.load_file(name)
        safetensors.torch.save_file({f"other.{key}": weight for key, weight in weights.items()}, name)
    for look in (verify, inspect):
        with pytest.raises(
            ValueError, match=r"asks for weights of [\d,]{15,} bytes in its config\.json, and has files of"
        ):
            look(folder)


def test_no_code_of_a_directory_is_run(sparse, tmp_path):
    folder = Path(shutil.copytree(sparse, tmp_path / "case", ignore=shutil.ignore_patterns(MANIFEST_FILE)))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: ...\nclass Model: ...\n")
    mapped = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}
    for changes in ({"model_type": "evil"}, {"model_type": "bert", "architectures": ["Model"]}):
        edit_config(folder, auto_map=mapped, **changes)
        for look in (verify, inspect, lambda folder: prune_directory(folder, tmp_path / "out", "2:4")):
            with pytest.raises(
                ValueError, match=r"is not the config of a model|was saved from Model, which transformers"
            ):
                look(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
@pytest.mark.parametrize(
    "name", ["config.json", "nxm_config.json", "modules.json", "model.safetensors.index.json", *CHECKPOINT]
)
def test_nobody_waits_for_a_pipe(name, sparse, tmp_path):
    """`missing_parts` looks at a checkpoint that a training is to resume from."""
    folder = Path(shutil.copytree(sparse, tmp_path / "case", ignore=shutil.ignore_patterns(MANIFEST_FILE)))
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert missing_parts(folder)
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
