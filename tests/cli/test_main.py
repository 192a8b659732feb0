"""The entry point: misuse and unreadable input are one line on stderr and exit code 2."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import nxm_hf
from nxm_hf.cli.main import main
from tests.support.saved_models import QUERY, edit_config, edit_weights

LOOKING = ("verify", "inspect")


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"nxm_hf {nxm_hf.__version__}\n"


def test_without_a_command_the_help_is_shown_and_it_counts_as_misuse(capsys):
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().out


def complaint(words: list[str], capsys) -> str:
    """What a misuse prints: exit code 2, one line on stderr, nothing on stdout."""
    assert main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and "Traceback" not in shown.err, shown
    return shown.err


@pytest.mark.parametrize(
    "words, useful",
    [
        (["verfy", "x"], "nxm: No such command 'verfy'. Did you mean 'verify'? See nxm --help."),
        (["recipe"], "Did you mean 'recipes'"),
        (["INSPECT", "./x"], "nxm inspect: ./x does not exist."),
        (["zzz"], "nxm: No such command 'zzz'. See nxm --help."),
        (["verify"], "nxm verify: Missing argument 'MODEL'. See nxm verify --help."),
        (["verify", "a", "b"], "unexpected extra argument"),
        (["verify", "a", "--patern", "2:4"], "--pattern"),
        (["verify", "a", "--pattern"], "--pattern' requires an argument"),
        (["--vresion"], "--version"),
        (["recipes", "all"], "unexpected extra argument"),
        (["recipes", "--rows", "-3"], "training rows must be 1 or more; got rows=-3"),
        (["recipes", "--rows", "many"], "valid integer"),
        (["prune", "a", "b", "--method", "alp"], "'alps'"),
        (["prune", "a", "b", "--on-indivisible", "skp"], "'skip'"),
        (["prune", "a", "b", "--inputs", "both"], "'dense'"),
        (["prune", "a", "b", "--dtype", "int8"], "'bfloat16'"),
        (["prune", "a", "b", "--device", "tpu7"], "device=tpu7 cannot be used"),
        (["prune", "a", "b", "--pattern", "4:2"], "Write '2:4'"),
        (["prune", "a", "b", "--method", "wanda"], "--calibration texts.txt"),
        (["prune", "a", "b", "--settings", '{"dampin": 1}'], "magnitude"),
        (["prune", "a", "b", "--calibration", "texs.txt"], "There is no file texs.txt."),
        (["prune", "a", "b", "--calibration", "./texts"], "There is no file ./texts."),
        (["prune", "./a", "b"], "./a does not exist."),
        (["verify", ".", "--pattern", "4:2"], "Write '2:4'"),
        (["verify", "a\nb"], "a b does not exist"),
        (["prune", "a", "--out", "b"], "No such option: --out. Write nxm prune MODEL OUT. See"),
        (["prune", "a", "--output-dir", "b"], "No such option: --output-dir. Write nxm prune MODEL OUT. See"),
        (["merge", "--base", "b"], "Write nxm merge BASE ADAPTER OUT."),
        (["prune", "a", "b", "--preview"], "No such option: --preview"),
        (["verify", ".", "--pattern", "half"], "There is no pattern 'half'"),
    ],
)
def test_misuse_is_one_line_with_the_right_word(words, useful, capsys):
    assert useful in complaint(words, capsys)


def _torn(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _empty_weights(folder):
    (folder / "model.safetensors").write_bytes(b"")


def _a_weight_is_missing(folder):
    weights = load_file(folder / "model.safetensors")
    del weights[f"{QUERY}.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _pickle_only(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _no_weights(folder):
    (folder / "model.safetensors").unlink()


def _a_shard_is_missing(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _text(name, text):
    return lambda folder: (folder / name).write_text(text)


BROKEN = {
    "torn weights": (_torn, "model.safetensors cannot be read"),
    "empty weights": (_empty_weights, "model.safetensors cannot be read"),
    "a missing weight": (_a_weight_is_missing, f"holds no weight of {QUERY}"),
    "weights of another model": (lambda folder: edit_config(folder, hidden_size=64), "by its config.json"),
    "pickle only": (_pickle_only, "pytorch_model.bin is a pickle: load it with transformers"),  # Pitfall 32
    "no weights": (_no_weights, "holds neither model.safetensors nor"),
    "a missing shard": (_a_shard_is_missing, "names 'model-00002-of-00002.safetensors', which is no file beside it"),
    "a broken index": (_text("model.safetensors.index.json", "{"), "index.json cannot be read"),
    "an index of no weights": (_text("model.safetensors.index.json", "[]"), "index.json cannot be read"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
    "a config that is not JSON": (_text("config.json", "{"), "config.json is not JSON"),
    "a config that is a list": (_text("config.json", "[]"), "config.json holds a list"),
    "an empty config": (_text("config.json", "{}"), "config.json is not the config of a model"),
    "an unknown model type": (lambda folder: edit_config(folder, model_type="brt"), "model type `brt`"),
    "an unknown architecture": (lambda folder: edit_config(folder, architectures=["MyBert"]), "saved from MyBert"),
    "no architecture": (lambda folder: edit_config(folder, architectures=None), "saved from none"),
    "code of its own": (
        lambda folder: edit_config(folder, model_type="mine", auto_map={"AutoConfig": "mine.Config"}),
        "config.json is not the config of a model",
    ),
    "an impossible config": (lambda folder: edit_config(folder, num_attention_heads=7), "config.json"),
    "a record that is not JSON": (_text("nxm_config.json", "{"), "nxm_config.json is not JSON"),
    "a record that is a list": (_text("nxm_config.json", "[1]"), "nxm_config.json"),
    "a record of a newer version": (_text("nxm_config.json", '{"magic": 1}'), "does not know 'magic'"),
    "a record of no known recipe": (_text("nxm_config.json", '{"recipe": "magic"}'), "There is no recipe 'magic'"),
    "a record with a wrong type": (_text("nxm_config.json", '{"layers": ["a"]}'), "layers"),
    "a record with a wrong pattern": (_text("nxm_config.json", '{"layers": {"a": 3}}'), "layers"),
}


@pytest.mark.parametrize("command", LOOKING)
@pytest.mark.parametrize("fault", BROKEN)
def test_what_cannot_be_read_is_one_line_that_says_why(command, fault, sparse, capsys):
    breaks, useful = BROKEN[fault]
    breaks(sparse)
    assert useful in complaint([command, str(sparse)], capsys)


@pytest.mark.parametrize("command", LOOKING)
def test_a_path_that_is_no_directory_is_not_looked_for_elsewhere(command, tmp_path, capsys):
    assert "does not exist" in complaint([command, str(tmp_path / "nowhere")], capsys)
    (tmp_path / "file").write_text("")
    assert "is a file; a directory is needed" in complaint([command, str(tmp_path / "file")], capsys)
    assert "holds no config.json" in complaint([command, str(tmp_path)], capsys)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["nxm", "python -m nxm_hf"])
def test_the_process_gives_its_exit_code_and_stops_quietly_when_nobody_reads(form, sparse):
    script = shutil.which("nxm", path=os.path.dirname(sys.executable))
    program = [script] if form == "nxm" else [sys.executable, "-m", "nxm_hf"]
    edit_weights(sparse, lambda weights: weights[f"{QUERY}.weight"].fill_(1.0))
    wrong = subprocess.run([*program, "verify", sparse], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert wrong.returncode == 1 and f"{QUERY} breaks 2:4" in wrong.stdout and wrong.stderr == ""
    reader, writer = os.pipe()
    os.close(reader)
    unread = subprocess.run([*program, "recipes"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (unread.returncode, unread.stderr) == (0, "")
