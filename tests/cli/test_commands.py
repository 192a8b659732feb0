"""The commands verify, inspect and flops: exit codes and what is printed."""

import json
import re

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from nxm_hf import NxMConfig, analysis, recipes, verify
from nxm_hf.cli.main import main
from nxm_hf.layers.gpu_kernels import GPU_KERNELS
from nxm_hf.patterns import PATTERNS, parse
from nxm_hf.solvers import SOLVERS, gpu
from tests.support.models import make_bert
from tests.support.saved_models import QUERY, edit_weights, make_sparse

LOOKING = ("verify", "inspect")


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


def test_verify_lists_every_problem_once(sparse, capsys):
    edit_weights(sparse, lambda weights: [w.fill_(1.0) for name, w in weights.items() if ".layer." in name])
    assert main(["verify", str(sparse)]) == 1
    shown = capsys.readouterr().out
    found = re.findall(r"^(bert\S+) breaks 2:4", shown, re.MULTILINE)
    assert len(set(found)) == len(found) == shown.count("breaks 2:4") == shown.count("PROBLEM") == 12
    assert shown.count("A plain Trainer fills zeros again") == 1


def test_verify_summary_has_one_line_for_each_role_and_pattern(tmp_path, capsys):
    make_sparse(make_bert(), tmp_path, '{"ffn_in": "1:4", "default": "2:4"}')
    assert main(["verify", str(tmp_path), "--summary"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:-2]]  # two lines of verdict
    roles = ("query", "key", "value", "attention_output", "ffn_in", "ffn_out")
    assert sorted(rows) == [
        [role, *(("1:4", "2", "0.2500") if role == "ffn_in" else ("2:4", "2", "0.5000"))] for role in sorted(roles)
    ]
    edit_weights(tmp_path, lambda weights: weights[f"{QUERY}.weight"].fill_(1.0))
    assert main(["verify", str(tmp_path), "--summary"]) == 1
    shown = capsys.readouterr().out
    assert shown.count("PROBLEM") == 1 and shown.count(f"{QUERY} breaks 2:4") == 1


def test_verify_prints_json_with_what_the_table_says(sparse, capsys):
    edit_weights(sparse, lambda weights: weights[f"{QUERY}.weight"].fill_(1.0))
    assert main(["verify", str(sparse), "--json"]) == 1
    whole = json.loads(capsys.readouterr().out)
    assert main(["verify", str(sparse), "--json", "--summary"]) == 1
    summary = json.loads(capsys.readouterr().out)
    verification = verify(sparse)
    assert whole["problems"] == summary["problems"] == verification.problems and not whole["ok"]
    assert [layer["name"] for layer in whole["layers"]] == [layer.name for layer in verification.layers]
    assert [layer["density"] for layer in whole["layers"]] == [layer.density for layer in verification.layers]
    assert sum(group["layers"] for group in summary["groups"]) == 12
    assert {group["role"]: group["layers_with_problems"] for group in summary["groups"]}["query"] == 1
    assert sum(group["layers_with_problems"] for group in summary["groups"]) == 1
    assert whole["density"] == summary["density"] == verification.density


def test_inspect_recipes_and_flops_print_json_too(sparse, tmp_path, capsys):
    def printed(*words):
        assert main([*words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    layers = printed("inspect", str(sparse))["layers"]
    assert len(layers) == 12 and {layer["pattern"] for layer in layers} == {"2:4"}
    assert layers[0]["gpu"] == [str(kernel) for kernel in GPU_KERNELS if kernel.takes(layers[0]["shape"])]
    listed = printed("recipes", "--pattern", "1:4")
    assert list(listed["recipes"]) == recipes.names() and {one["pattern"] for one in listed["measurements"]} == {"1:4"}
    right = analysis.training_flops(make_bert(), "ste", 7, tokens=16)
    words = ["--recipe", "ste", "--steps", "7", "--tokens", "16"]
    account = printed("flops", "--model", str(sparse), *words)
    assert account["ratio"] == right.ratio and len(account["layers"]) == len(right.layers)


def test_verify_with_a_pattern_of_its_own_overrules_the_record(sparse, capsys):
    assert main(["verify", str(sparse), "--pattern", "4:8"]) == 0
    assert main(["verify", str(sparse), "--pattern", "1:4"]) == 1
    assert main(["verify", "--pattern=4x2", str(sparse)]) == 0


def test_verify_wants_a_pattern_for_a_dense_model(dense, capsys):
    assert main(["verify", str(dense)]) == 2
    assert "--pattern 2:4" in capsys.readouterr().err
    assert main(["verify", str(dense), "--pattern", "2:4"]) == 1


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
    absent = gpu.SOLVERS.values() if gpu.BACKEND.unavailable() else ()
    for kind, solvers in SOLVERS.items():
        first, *others = (solver.__name__ for solver in solvers if solver not in absent)
        assert f"{kind}: {first}" in shown and all(other in shown for other in others)
    assert not gpu.BACKEND.unavailable() or f"Kernels for GPUs are not in use: {gpu.BACKEND.unavailable()}." in shown


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


def test_nxm_flops_prints_the_account(tmp_path, capsys):
    make_bert().save_pretrained(tmp_path)
    words = ["--recipe", "structure-decay", "--pattern", "1:16", "--warmup", "0.1", "--settle=0.1", "--steps", "500"]
    settings = '{"refresh": 2, "frames": ["4:16", "1:16"]}'
    assert main(["flops", "--model", str(tmp_path), *words, "--settings", settings, "--tokens", "16"]) == 0
    config = NxMConfig("structure-decay", "1:16", settings, warmup=0.1, settle=0.1)
    right = analysis.training_flops(make_bert(), config, 500, tokens=16)
    assert capsys.readouterr().out == f"{right}\n" and right.ratio < 0.8


@pytest.mark.parametrize(
    "words, useful",
    [
        ([], "Give --model MODEL to plan a training, or RUN_DIR"),
        (["a", "--model", "b"], "Give --model MODEL to plan a training, or RUN_DIR"),
        (["a", "--steps", "5"], "a has its recipe and steps on record; RUN_DIR can be combined with --tokens only."),
        (["nowhere"], "nowhere does not exist"),
        (["--model", "nowhere"], "nowhere does not exist"),
        (["--model", ".", "--recipe", "stee"], "Write 'ste'"),
        (["--model", ".", "--settings", "{"], "is not JSON"),
        (["--model", ".", "--settle", "2"], "settle is a fraction"),
        (["--model", ".", "--steps", "many"], "valid integer"),
    ],
)
def test_misuse_of_nxm_flops_is_one_line(words, useful, capsys):
    assert main(["flops", *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and useful in shown.err
