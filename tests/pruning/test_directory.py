"""`nxm prune` and `nxm convert`: whole directories, exit codes and messages, and jobs that are killed."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from nxm_hf import prune, verify
from nxm_hf.cli.main import main
from nxm_hf.config import SparsityRecord
from nxm_hf.layers.find import find_layers
from nxm_hf.pruning.directory import prune_directory
from nxm_hf.pruning.result import RESULT_FILE, PruningResult
from nxm_hf.storage.manifest import MANIFEST_FILE
from nxm_hf.storage.write_errors import WriteError
from tests.support.file_operations import limited_files
from tests.support.models import assert_equal_weights, make_bert, make_model, make_texts, make_tokenizer
from tests.support.processes import command, environment
from tests.support.processes.killed_pruning import arguments as killed_arguments

SHORT = ["--length", "16", "--samples", "8"]


@pytest.fixture
def dense(tmp_path):
    """A dense model with all that lies beside one, as a stranger saved it."""
    folder = tmp_path / "dense"
    make_bert().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# Mine\n")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text("{}")
    (folder / "checkpoint-3").mkdir()
    for name in ("optimizer.pt", "pytorch_model.bin", "trainer_state.json", "checkpoint-3/config.json"):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture(autouse=True)
def stay_here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(make_texts(60)))
    return path


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_prune_writes_a_whole_directory_that_loads_without_us(dense, texts, tmp_path, capsys):
    before = files(dense)
    out = tmp_path / "new" / "out"
    assert run("prune", dense, out, "--method", "wanda", "--calibration", texts, *SHORT) == 0
    shown = capsys.readouterr().out
    chosen = [make_texts(60)[n * 60 // 8].split() for n in range(8)]  # each read between two marks
    assert "12 layers by wanda, density 0.5000, mean error 0." in shown
    assert f"{sum(len(text) + 2 for text in chosen)} tokens" in shown
    assert files(dense) == before and [path.name for path in out.parent.iterdir()] == ["out"]
    left = {"optimizer.pt", "pytorch_model.bin", "trainer_state.json", "checkpoint-3/config.json"}
    assert set(files(out)) == set(before) - left | {"nxm_config.json", RESULT_FILE, MANIFEST_FILE}
    by_hand = make_bert().from_pretrained(dense)
    prune(by_hand, "2:4", "wanda", texts, make_tokenizer(), length=16, samples=8)
    assert_equal_weights(AutoModelForSequenceClassification.from_pretrained(out), by_hand)
    assert AutoTokenizer.from_pretrained(out)("w1 w2")["input_ids"] == [1, 5, 6, 2]
    assert run("verify", out) == 0 and SparsityRecord.from_pretrained(out).pruning["method"] == "wanda"
    card = (out / "README.md").read_text()
    assert "# Mine" in card and "license: mit" in card and "## Sparsity" in card and "`wanda`" in card
    assert json.loads((out / RESULT_FILE).read_text())["method"] == "wanda"


def test_the_results_of_the_dense_model_are_not_those_of_the_pruned_one(dense, tmp_path):
    task, metric = {"type": "text-classification"}, {"type": "accuracy", "value": 0.9}
    results = [{"task": task, "dataset": {"type": "imdb", "name": "IMDB"}, "metrics": [metric]}]
    header = yaml.safe_dump({"base_model": "me/mine", "model-index": [{"name": "mine", "results": results}]})
    (dense / "README.md").write_text(f"---\n{header}---\n\n# Mine\n")
    assert run("prune", dense, tmp_path / "out", "--method", "magnitude") == 0
    data = ModelCard.load(tmp_path / "out/README.md").data
    assert data.eval_results is None and "model_name" not in data.to_dict() and data.base_model == "me/mine"
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-classification")


def test_every_option_reaches_the_pruning(dense, texts, tmp_path):
    options = ["--pattern", '{"ffn": "1:4", "default": "4:8"}', "--exclude", "key"]
    options += ["--exclude", "encoder.layer.1.output.dense"]
    options += ["--inputs", "dense", "--method", "sparsegpt", "--settings", '{"damping": 0.1}', "--batch-size", "3"]
    assert run("prune", dense, tmp_path / "out", *options, "--calibration", texts, *SHORT) == 0
    by_hand = make_bert().from_pretrained(dense)
    choices = dict(exclude=["key", "encoder.layer.1.output.dense"], inputs="dense", damping=0.1, batch_size=3)
    prune(by_hand, {"ffn": "1:4", "default": "4:8"}, "sparsegpt", texts, length=16, samples=8, **choices)
    assert_equal_weights(AutoModelForSequenceClassification.from_pretrained(tmp_path / "out"), by_hand)
    assert SparsityRecord.from_pretrained(tmp_path / "out").to_dict() == by_hand.config.nxm_config


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["dense", "dense", "--method", "magnitude"], "dense is there already, and nothing is overwritten"),
        (["./nowhere", "out"], "./nowhere does not exist."),
        (
            ["dense", "out", "--method", "sparsegpt"],
            "sparsegpt scores weights by the inputs of each layer, so it needs calibration data",
        ),
        (
            ["dense", "out", "--method", "wand", "--calibration", "texts.txt"],
            "'wand' is not one of 'magnitude', 'wanda'",
        ),
        (["dense", "out", "--method", "wanda", "--calibration", "no.txt"], "There is no file no.txt."),
        (["dense", "out", "--pattern", "4:2", "--method", "magnitude"], "2:4"),
        (["dense", "out", "--pattern", "5:7", "--method", "magnitude"], "The pattern does not fit 12 layers"),
        (["dense", "out", "--settings", "[1]"], "settings must be an object such as"),
        (["dense", "out", "--settings", '{"damp": 1}'], "The method 'magnitude' has no settings; got 'damp'"),
        (["dense", "out", "--samples", "0"], "samples must be a whole number from 1 on; got 0"),
        (["dense", "out", "--calibraton", "x"], "No such option: --calibraton"),
    ],
)
def test_what_cannot_be_done_exits_with_2_and_writes_nothing(
    arguments, message, dense, texts, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path)
    assert run("prune", *arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown.splitlines()[-1] and files(tmp_path) == before


def test_without_a_method_it_is_alps_with_texts_and_magnitude_without(dense, texts, tmp_path):
    assert run("prune", dense, tmp_path / "with", "--calibration", texts, *SHORT) == 0
    assert run("prune", dense, tmp_path / "without") == 0
    assert run("convert", dense, tmp_path / "converted", "--to", "4:8", "--calibration", texts, *SHORT) == 0
    methods = {name: PruningResult.read(tmp_path / name).method for name in ("with", "without", "converted")}
    assert methods == {"with": "alps", "without": "magnitude", "converted": "alps"}
    for data in (texts, None):
        model = AutoModelForSequenceClassification.from_pretrained(dense)
        assert prune(model, calibration=data, length=16, samples=8).method == methods["with" if data else "without"]


def test_include_takes_one_word_and_leaves_the_directories_alone(dense, tmp_path):
    assert run("prune", "--include", "ffn", "--include", "query", dense, tmp_path / "out") == 0
    roles = {layer.role for layer in PruningResult.read(tmp_path / "out").layers}
    assert roles == {"ffn_in", "ffn_out", "query"}


def test_dtype_is_the_type_of_the_saved_weights(dense, tmp_path):
    assert run("prune", dense, tmp_path / "out", "--dtype", "bfloat16", "--device", "cpu") == 0
    weights = load_file(tmp_path / "out/model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16 and verify(tmp_path / "out").ok


def test_seed_draws_other_texts_and_the_same_ones_again(dense, texts, tmp_path):
    masks = []
    for number, seed in enumerate(([], ["--seed", "1"], ["--seed", "1"], ["--seed", "2"])):
        out = tmp_path / str(number)
        assert run("prune", dense, out, "--method", "sparsegpt", "--calibration", texts, *SHORT, *seed) == 0
        masks.append(load_file(out / "model.safetensors")["bert.encoder.layer.0.output.dense.weight"])
    assert torch.equal(masks[1], masks[2])
    assert not any(torch.equal(masks[1], masks[other]) for other in (0, 3))


def test_json_is_what_the_directory_keeps(dense, tmp_path, capsys):
    assert run("prune", dense, tmp_path / "out", "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "out" / RESULT_FILE).read_text())


def test_ctrl_c_is_answered_in_one_line_that_says_how_to_go_on(dense, tmp_path, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", interrupted)  # the last step, which gives the directory its name
        assert run("prune", dense, tmp_path / "out") == 130
    shown = capsys.readouterr()
    right = "nxm prune: interrupted. The same command continues after the last finished block.\n"
    assert shown.out == "" and shown.err == right and not (tmp_path / "out").exists()
    assert run("prune", dense, tmp_path / "out") == 0 and verify(tmp_path / "out").ok


def test_weights_that_the_files_lack_are_an_error_and_not_random_numbers(dense, tmp_path, capsys):
    from safetensors.torch import save_file

    weights = load_file(dense / "model.safetensors")
    del weights["bert.encoder.layer.0.output.dense.weight"]
    save_file(weights, dense / "model.safetensors", metadata={"format": "pt"})
    assert run("prune", dense, tmp_path / "out", "--method", "magnitude") == 2
    assert "holds no weight of bert.encoder.layer.0.output.dense" in capsys.readouterr().err


# -- convert -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["dense", "unstructured:0.5", "2:4", "1:4"])
@pytest.mark.parametrize("to", ["4:8", "2:4-transposable", "1:4"])
def test_convert_goes_from_any_pattern_to_any_other(start, to, tmp_path, capsys):
    model = make_bert()
    if start != "dense":
        prune(model, start)
    model.save_pretrained(tmp_path / "from")
    assert run("convert", tmp_path / "from", tmp_path / "to", "--to", to) == 0
    assert verify(tmp_path / "to", to).ok and f" {to} " in capsys.readouterr().out
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "to")
    for layer, old in zip(find_layers(again), find_layers(model), strict=True):
        kept = layer.weight != 0
        assert torch.equal(layer.weight[kept], old.weight[kept])
        assert not (kept & (old.weight == 0)).any()
    if (start, to) in (("2:4", "4:8"), ("1:4", "1:4")):
        assert_equal_weights(again, model)


def test_convert_shows_what_the_outputs_lose_when_it_has_texts(dense, texts, tmp_path, capsys):
    assert run("prune", dense, tmp_path / "half", "--method", "magnitude", "--pattern", "unstructured:0.5") == 0
    arguments = ["convert", tmp_path / "half", tmp_path / "out", "--to", "2:4", "--calibration", texts, *SHORT]
    assert run(*arguments, "--method", "sparsegpt") == 0
    rows = json.loads((tmp_path / "out" / RESULT_FILE).read_text())["layers"]
    assert all(0 < row["error"] < row["magnitude_error"] < 1 for row in rows)
    shown = capsys.readouterr().out
    assert f"{rows[0]['magnitude_error']:.4f}     {rows[0]['error']:.4f}" in shown


# -- what is said afterwards -------------------------------------------------------------------------------------------


def test_report_draws_each_layer_of_what_was_pruned(dense, texts, tmp_path, capsys):
    assert run("prune", dense, tmp_path / "a<b", "--method", "wanda", "--calibration", texts, *SHORT) == 0
    assert run("prune", dense, tmp_path / "plain", "--method", "magnitude") == 0
    assert run("report", tmp_path / "a<b", tmp_path / "plain") == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "a<b" / "report.html")
    page = (tmp_path / "a<b" / "report.html").read_text()
    rows = json.loads((tmp_path / "a<b" / RESULT_FILE).read_text())["layers"]
    most = max(row["magnitude_error"] for row in rows)
    for row in rows:
        assert f"<td>{row['error']:.4f}</td>" in page and f"width:{row['error'] / max(most, row['error']):.1%}" in page
    assert "a&lt;b" in page and "a<b" not in page and page.count('class="bar"') == 24
    (tmp_path / "plain" / RESULT_FILE).write_text("{}")
    assert run("report", tmp_path / "plain") == 2 and "Prune the model again" in capsys.readouterr().err


# -- killed ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_job_that_was_killed_anywhere_goes_on_to_the_same_bits(dense, texts, tmp_path):
    ran = subprocess.run(
        command("killed_pruning", tmp_path, "4"), env=environment(OMP_NUM_THREADS="1"), capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    *killed_at, total = ran.stdout.splitlines()
    assert len(killed_at) == 4 and int(total) > 15
    unbroken = files(tmp_path / "unbroken/out")
    resumed = 0
    for number in range(4):
        folder = tmp_path / str(number)
        finished = list(folder.glob(".out.unfinished/*.layer.*/nxm_state.safetensors"))
        times = [path.stat().st_mtime_ns for path in finished]
        assert not (folder / "out").exists() or files(folder / "out").keys() == unbroken.keys(), killed_at[number]
        code = run(*killed_arguments(str(number)))
        assert code == 0 or (folder / "out").exists(), killed_at[number]
        resumed += bool(times)
        for name, content in files(folder / "out").items():
            assert content == unbroken[name] or name in (RESULT_FILE, MANIFEST_FILE), (
                f"{name}, killed at {killed_at[number]}"
            )
    assert resumed >= 1


def test_an_unfinished_job_of_another_kind_is_begun_anew_and_that_is_said(dense, texts, tmp_path, monkeypatch, caplog):
    """Finished blocks of other settings, another text or another model must not be mixed in."""

    class Stopped(Exception):
        pass

    monkeypatch.setattr("nxm_hf.pruning.directory._write", lambda *args: (_ for _ in ()).throw(Stopped))
    with pytest.raises(Stopped):
        prune_directory(dense, tmp_path / "out", "2:4", "magnitude", texts)
    monkeypatch.undo()
    assert len(list((tmp_path / ".out.unfinished").glob("*.layer.*"))) == 2
    prune_directory(dense, tmp_path / "out", "1:4", "magnitude", texts)
    assert "holds an unfinished job with another pattern; starting anew" in caplog.text
    assert verify(tmp_path / "out", "1:4").ok and not (tmp_path / ".out.unfinished").exists()
    shutil.rmtree(tmp_path / "out")


def test_a_decoder_is_pruned_from_the_command_line_too(tmp_path, texts):
    make_model("gpt2").save_pretrained(tmp_path / "dense")
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    arguments = ["--tokenizer", tmp_path / "tokenizer", "--calibration", texts, *SHORT]
    assert run("prune", tmp_path / "dense", tmp_path / "out", *arguments) == 0
    assert run("verify", tmp_path / "out") == 0


def test_permutation_and_reconstruction_are_said_in_result_record_and_table(dense, texts, tmp_path, capsys):
    options = ["--method", "wanda", "--calibration", texts, *SHORT, "--reconstruct", '{"steps": 3}', "--permute"]
    assert run("prune", dense, tmp_path / "out", *options) == 0
    shown = capsys.readouterr().out
    assert "error pruned" in shown and "by reconstruction" in shown and "bert.encoder.layer.1" in shown
    model = make_bert().from_pretrained(dense)
    steps = {"steps": 3}
    prune(model, "2:4", "wanda", texts, make_tokenizer(), length=16, samples=8, reconstruct=steps, permute=True)
    assert_equal_weights(AutoModelForSequenceClassification.from_pretrained(tmp_path / "out"), model)
    result = PruningResult.read(tmp_path / "out")
    assert (
        result.permuted is not None
        and result.reconstruct == {"steps": 3, "learning_rate": 0.01, "seed": 0, "scope": "block"}
        and len(result.blocks) == 2
    )
    record = SparsityRecord.from_pretrained(tmp_path / "out")
    assert record.pruning["reconstruct"] == result.reconstruct
    assert run("report", tmp_path / "out") == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(f"<td>{error:.4f}</td>" in page for block in result.blocks for error in (block.before, block.after))


@pytest.mark.skipif(os.name == "nt", reason="needs limits of files")
def test_a_disk_that_does_not_take_the_result_keeps_no_part_of_it(dense, tmp_path):
    with limited_files(20_000), pytest.raises(WriteError, match=r"could not be written: File too large\."):
        prune_directory(dense, tmp_path / "out", "2:4")
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []
