"""The command line: exit codes, what is printed, and one-line errors."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

import nxm_hf
from nxm_hf import NxMConfig, recipes
from nxm_hf.cli import options, recipe_guide
from nxm_hf.cli.main import COMMANDS, main
from nxm_hf.patterns import PATTERNS, parse
from nxm_hf.solvers import SOLVERS, gpu
from nxm_hf.storage import inspect
from tests.support.models import make_bert

NAMES = [function.__name__.removesuffix("_command") for function in COMMANDS]
LOOKING = ("verify", "inspect")
QUERY = "bert.encoder.layer.0.attention.self.query"


def make_sparse(model, folder, pattern="2:4"):
    """Save the model as a sparse one; its record stands in config.json."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = nxm_hf.attach(model, optimizer, nxm_hf.NxMConfig("asp", pattern=pattern), total_steps=1)
    engine.finish()
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def sparse(tmp_path):
    return make_sparse(make_bert(), tmp_path / "sparse")


@pytest.fixture
def dense(tmp_path):
    make_bert().save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


def edit_weights(folder: Path, edit) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **changes) -> None:
    words = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**words, **changes}))


# -- verify --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", [kind.examples[0] for kind in PATTERNS if kind.kind != "dense"])
def test_verify_exits_with_0_when_every_layer_holds_its_pattern(pattern, tmp_path, capsys):
    folder = make_sparse(make_bert(), tmp_path, pattern)
    assert main(["verify", str(folder)]) == 0
    shown = capsys.readouterr()
    assert shown.err == "" and shown.out.count(f"  {parse(pattern)}  ") == 12
    assert "12 layers, density 0.5000: ok" in shown.out


def test_verify_exits_with_1_and_names_the_layer_that_breaks_its_pattern(sparse, capsys):
    edit_weights(sparse, lambda weights: weights[f"{QUERY}.weight"][3, :8].fill_(1.0))
    assert main(["verify", str(sparse)]) == 1
    assert f"{QUERY} breaks 2:4 in 2 places" in capsys.readouterr().out


def test_verify_exits_with_1_for_zeros_that_are_negative(sparse, capsys):
    """Pitfall 1: kernels read -0.0 as a weight."""
    edit_weights(sparse, lambda weights: weights[f"{QUERY}.weight"].mul_(-1))
    assert main(["verify", str(sparse)]) == 1
    assert f"{QUERY} holds 512 zeros that are -0.0" in capsys.readouterr().out


def test_verify_lists_every_problem(sparse, capsys):
    edit_weights(sparse, lambda weights: [w.fill_(1.0) for name, w in weights.items() if ".layer." in name])
    assert main(["verify", str(sparse)]) == 1
    found = re.findall(r"^(bert\S+) breaks 2:4", capsys.readouterr().out, re.MULTILINE)
    assert len(set(found)) == 12


def test_verify_with_a_pattern_of_its_own_overrules_the_record(sparse, capsys):
    assert main(["verify", str(sparse), "--pattern", "4:8"]) == 0
    assert main(["verify", str(sparse), "--pattern", "1:4"]) == 1
    assert main(["verify", "--pattern=4x2", str(sparse)]) == 0


def test_verify_wants_a_pattern_for_a_dense_model(dense, capsys):
    assert main(["verify", str(dense)]) == 2
    assert "--pattern 2:4" in capsys.readouterr().err
    assert main(["verify", str(dense), "--pattern", "2:4"]) == 1


# -- inspect -------------------------------------------------------------------------------------------------------


def test_the_backends_are_those_of_torch():
    """Pitfall 12: the shapes that each kernel takes, as torch has them."""
    kernels = {
        "CUTLASS": torch.sparse.SparseSemiStructuredTensorCUTLASS,
        "cuSPARSELt": torch.sparse.SparseSemiStructuredTensorCUSPARSELT,
    }
    for name, kernel in kernels.items():
        ours = {
            getattr(torch, dtype): (backend.rows, backend.columns)
            for backend in inspect.BACKENDS
            if backend.name == name
            for dtype in backend.dtypes
        }
        theirs = {k: (v.sparse_min_rows, v.sparse_min_cols) for k, v in kernel._DTYPE_SHAPE_CONSTRAINTS.items()}
        theirs.pop(torch.float32, None)  # CUTLASS has one, and it is for 1:2
        assert ours == theirs


@pytest.mark.parametrize("hidden, ffn", [(32, 64), (64, 128), (128, 256), (48, 80), (40, 72)])
def test_inspect_says_which_kernels_fit_by_shape(hidden, ffn, tmp_path, capsys):
    """Pitfalls 12 and 13: one rule for every dtype, and it is said for every layer."""
    model = make_bert(hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=2)
    make_sparse(model, tmp_path)
    assert main(["inspect", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rules = ((32, 64), (16, 128), (16, 16), (32, 32))
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layer." in name:
            out, into = module.weight.shape
            marks = [str(i + 1) if out % r == 0 and into % c == 0 else "-" for i, (r, c) in enumerate(rules)]
            row = next(line for line in lines if line.startswith(f"{name} "))
            assert row.split()[2:] == [f"{out}x{into}", "float32", "2:4", "0.5000", *marks]


def test_inspect_gives_the_reason_of_each_refusal(tmp_path, capsys):
    make_sparse(make_bert(hidden_size=64, intermediate_size=128), tmp_path)
    main(["inspect", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "CUTLASS int8, multiples of 16x128: 2 of 12 layers\n" in shown
    assert "not 64x64, which is no multiple: 8 layers\n" in shown
    assert "not 128x64, which is no multiple: 2 layers\n" in shown
    assert "none of them runs 2:4 in float32" in shown


def test_inspect_names_every_matrix_that_is_never_pruned(dense, capsys):
    """Pitfall 13: what is left out is said."""
    main(["inspect", str(dense)])
    shown = capsys.readouterr().out
    for name, module in make_bert().named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
            assert shown.count(f"{name} ") + shown.count(f"{name}: ") == 1, name


def test_inspect_of_a_dense_model_says_what_could_run_once_it_is_sparse(dense, capsys):
    assert main(["inspect", str(dense)]) == 0
    shown = capsys.readouterr().out
    assert "no record of being sparse" in shown and ", once they hold 2:4" in shown
    assert shown.count("  dense    1.0000   - - 3 4") == 10 and "16x16: 12 of 12 layers" in shown


def test_inspect_knows_that_kernels_take_no_other_pattern(tmp_path, capsys):
    make_sparse(make_bert(hidden_size=64, intermediate_size=128), tmp_path, "4:8")
    main(["inspect", str(tmp_path)])
    shown = capsys.readouterr().out
    assert shown.count("0.5000   - - - -") == 12 and "not 4:8, which is not 2:4: 12 layers" in shown
    make_sparse(make_bert(hidden_size=64, intermediate_size=128), tmp_path, "1:4")  # which holds 2:4 as well
    main(["inspect", str(tmp_path)])
    assert "16x16: 12 of 12 layers" in capsys.readouterr().out


def test_inspect_knows_that_a_conv1d_is_not_a_linear(tmp_path, capsys):
    """Pitfall 19: the weight of GPT-2 lies the other way round."""
    GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=2, vocab_size=50, n_positions=8)).save_pretrained(tmp_path)
    assert main(["inspect", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"transformer.h.0.mlp.c_fc +ffn_in +256x64 ", shown)
    assert "not Conv1D, which would have to become a Linear first: 8 layers" in shown


def test_inspect_shows_the_solver_in_use_of_every_kind_of_pattern(dense, capsys):
    main(["inspect", str(dense)])
    shown = capsys.readouterr().out
    absent = gpu.CATALOGUE.values() if gpu.absence() else ()
    for kind, solvers in SOLVERS.items():
        first, *others = (solver.__name__ for solver in solvers if solver not in absent)
        assert f"{kind}: {first}" in shown and all(other in shown for other in others)
    assert not gpu.absence() or f"Kernels for GPUs are not in use: {gpu.absence()}." in shown


def test_a_model_that_was_saved_in_shards_is_looked_at_whole(tmp_path, capsys):
    model = make_bert()
    make_sparse(model, tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    for command in LOOKING:
        shown = []
        for folder in ("one", "many"):
            assert main([command, str(tmp_path / folder)]) == 0
            shown.append(capsys.readouterr().out.replace(f"/{folder}", ""))
        assert shown[0] == shown[1]


# -- recipes, help and version -------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [50, 80, 100, 200])
def test_recipes_lists_the_whole_catalogue_within_the_terminal(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["recipes"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    entries = dict(re.findall(r"^([a-z]\S*) {2,}(\S.*\n(?:  +.*\n)*)", shown, re.MULTILINE))
    assert [name for name in entries if name != "recipe"] == recipes.names()
    for name in recipes.names():
        words = " ".join(entries[name].split())
        sentence, paper = recipes.describe(name)
        assert sentence in words and paper in words
        assert all(f"{key}={value!r}" in words for key, value in recipes.settings(name).items())


@pytest.mark.parametrize(
    "more", [[], ["--rows", "4000"], ["--rows", "400000"], ["--pattern", "4:8"], ["--pattern", "3:7"]]
)
def test_recipes_says_what_to_start_with_and_what_that_rests_on(more, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["recipes", *more]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert ("Kao et al." in shown) == (not more)  # the catalogue only where nothing is asked
    pattern = more[1] if "--pattern" in more else "2:4"
    measured = sorted(
        (one for one in recipe_guide.MEASUREMENTS if one.pattern == pattern), key=lambda one: one.sort_key
    )
    told = [one for one in recipe_guide.MEASUREMENTS if f"{one.recipe} {one.gap_closed:.0%} (" in shown]
    assert len(told) == len(measured)
    if measured:
        best = max(measured, key=lambda one: (len(one.tasks), one.seeds, one.gap_closed))
        assert f"start with {best.recipe}." in shown and all(f"{task} (" in shown for task in best.tasks)
        assert ("only a guess" in shown) == ("400000" in more)
    else:
        assert f"Nothing has been measured with {pattern}" in shown


def test_the_guide_says_how_to_write_what_it_advises():
    def read(recipe):
        return eval(recipe_guide.in_python(recipe, "1:4"), {"NxMConfig": NxMConfig})

    expected = NxMConfig("admm", "1:4", {"rho": 0.01, "start": "A"}, warmup=0.1, settle=0.3)
    assert read("admm rho=1e-2 start=A settle=0.3 warmup=0.1") == expected
    assert all(read(one.recipe).recipe == one.recipe.split()[0] for one in recipe_guide.MEASUREMENTS)


def test_help_has_one_line_for_each_command(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in NAMES:
        assert sum(line.startswith(f"  {name} ") for line in lines) == 1
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", NAMES)
def test_every_command_explains_itself(name, capsys):
    assert main([name, "--help"]) == 0
    assert f"usage: nxm {name}" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"nxm_hf {nxm_hf.__version__}\n"


def test_without_a_command_the_help_is_shown_and_it_counts_as_misuse(capsys):
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().out


def test_a_command_is_one_function(monkeypatch, capsys):
    def say_twice_command(word: options.ModelDirectory, *, times_more: options.PatternText = "0") -> int:
        """Say a word.

        And more.
        """
        print((word + " ") * (2 + int(times_more)))
        return 7

    monkeypatch.setattr("nxm_hf.cli.main.COMMANDS", (*COMMANDS, say_twice_command))
    assert main(["say-twice", "hm", "--times-more", "1"]) == 7
    assert capsys.readouterr().out.strip() == "hm hm hm"
    main(["--help"])
    assert "  say-twice  Say a word.\n" in capsys.readouterr().out


# -- misuse and what cannot be read --------------------------------------------------------------------------------


def complaint(words: list[str], capsys) -> str:
    """What a misuse prints: exit code 2, one line on stderr, nothing on stdout."""
    assert main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and "Traceback" not in shown.err, shown
    return shown.err


@pytest.mark.parametrize(
    "words, useful",
    [
        (["verfy", "x"], "Did you mean verify?"),
        (["recipe"], "Did you mean recipes?"),
        (["INSPECT", "x"], "Did you mean inspect?"),
        (["zzz"], "There is no command 'zzz'; the commands are verify, inspect, recipes"),
        (["verify"], "required: DIR"),
        (["verify", "a", "b"], "unrecognized arguments: b"),
        (["verify", "a", "--patern", "2:4"], "Did you mean --pattern?"),
        (["verify", "a", "--pattern"], "expected one argument"),
        (["--vresion"], "Did you mean --version?"),
        (["recipes", "all"], "unrecognized arguments: all"),
        (["recipes", "--rows", "-3"], "rows=-3 is no number of training rows"),
        (["verify", ".", "--pattern", "4:2"], "Write '2:4'"),
        (["verify", "a\nb"], "a b does not exist"),
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
    "pickle only": (_pickle_only, "pytorch_model.bin is read by transformers alone"),  # Pitfall 32
    "no weights": (_no_weights, "holds neither model.safetensors nor"),
    "a missing shard": (_a_shard_is_missing, "model-00002-of-00002.safetensors cannot be read"),
    "a broken index": (_text("model.safetensors.index.json", "{"), "index.json cannot be read"),
    "an index of no weights": (_text("model.safetensors.index.json", "[]"), "index.json cannot be read"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
    "a config that is not JSON": (_text("config.json", "{"), "config.json is not the config of a model"),
    "a config that is a list": (_text("config.json", "[]"), "config.json is not the config of a model"),
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


# -- the console script --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_console_script_gives_its_exit_code_and_stops_quietly_when_nobody_reads(sparse):
    script = shutil.which("nxm", path=os.path.dirname(sys.executable))
    edit_weights(sparse, lambda weights: weights[f"{QUERY}.weight"].fill_(1.0))
    wrong = subprocess.run([script, "verify", sparse], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert wrong.returncode == 1 and f"{QUERY} breaks 2:4" in wrong.stdout and wrong.stderr == ""
    reader, writer = os.pipe()
    os.close(reader)
    unread = subprocess.run([script, "recipes"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (unread.returncode, unread.stderr) == (0, "")
