"""Presets: what their files say can be run, and each runs from end to end on tiny models."""

from pathlib import Path

import pytest
import torch
import transformers as T

from benchmarks.glue.comparison import command_line, squad_script
from benchmarks.glue.comparison.presets import PRESETS, read_preset
from benchmarks.glue.comparison.records import RecordFile
from benchmarks.glue.comparison.trials import check_trial
from benchmarks.language_model import parse_arguments
from nxm_hf import NxMConfig
from tests.support.comparison_trials import make_request, write_rows
from tests.support.example_scripts import made_data
from tests.support.models import SHAPE, TOKENS, make_model, make_texts, make_tokenizer

ENCODERS = {
    "bert-base-uncased": (T.BertForSequenceClassification, T.BertConfig(**SHAPE)),
    "distilbert-base-uncased": (
        T.DistilBertForSequenceClassification,
        T.DistilBertConfig(vocab_size=50, dim=32, n_layers=2, n_heads=2, hidden_dim=64),
    ),
    "ModernBERT-base": (
        T.ModernBertForSequenceClassification,
        T.ModernBertConfig(**SHAPE, **TOKENS, cls_token_id=1, sep_token_id=2, global_attn_every_n_layers=2),
    ),
    "roberta-base": (
        T.RobertaForSequenceClassification,
        T.RobertaConfig(**SHAPE, **TOKENS, max_position_embeddings=64),
    ),
}
SQUAD_WORDS = ["--preset", "squad", "--recipes", "dense", "admm", "--max_seq_length", "10", "--doc_stride", "2"]
GLUE = [name for name in PRESETS if read_preset(name).script is None and name != "squad"]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    for name, (kind, config) in ENCODERS.items():
        torch.manual_seed(0)
        kind(config).save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    return [str(folder / name) for name in ENCODERS]


def test_there_is_a_preset_for_each_kind_of_study():
    assert {"nxmtransformer", "bert-glue", "opt-wikitext", "squad"} <= {*PRESETS}
    glue = read_preset("bert-glue")
    assert len(glue.tasks) == 8 and len(glue.seeds) == 5
    assert {Path(name).name for name in glue.models} == {*ENCODERS}


@pytest.mark.parametrize("name", GLUE)
def test_every_point_of_a_preset_is_one_that_the_script_accepts(name):
    request = make_request("--preset", name)
    for task, variant in request.pairs:
        points = request.points(task, variant)
        assert len(points) >= 6
        for point in points:
            check_trial(request.trial(task, variant, 0, point))


def test_a_preset_that_extends_another_has_its_grid():
    for recipe in ("dense", "asp", "admm"):
        for task in ("rte", "mnli"):
            grids = [read_preset(name).grid(task, recipe, ()) for name in ("bert-glue", "nxmtransformer")]
            assert grids[0] == grids[1]


def test_the_default_of_admm_is_tried_at_every_rate_and_at_no_other_strength():
    request = make_request("--preset", "bert-glue", "--tasks", "rte")
    (auto,) = [pair for pair in request.pairs if pair[1].recipe == "admm rho=auto"]
    assert {key for point in request.points(*auto) for key, _ in point} == {
        "learning_rate",
        "num_train_epochs",
        "per_device_train_batch_size",
    }


def test_what_is_written_replaces_what_a_preset_says():
    words = ["--preset", "bert-glue", "--model", "m", "--tasks", "rte", "--recipes", "asp", "--seeds", "7"]
    options, _ = command_line.parse_arguments(words)
    assert (options.models, options.tasks, options.recipes, options.seeds) == (["m"], ["rte"], ["asp"], [7])
    options, _ = command_line.parse_arguments(words[:2])
    preset = read_preset("bert-glue")
    named = [options.models, options.tasks, options.recipes, options.seeds]
    assert named == [preset.models, preset.tasks, preset.recipes, preset.seeds]


def test_bert_glue_runs_on_four_encoders_and_goes_on(encoders, tmp_path, capsys, trials_in_this_process, without_plots):
    rows = write_rows(tmp_path / "rows")
    words = ["--preset", "bert-glue", "--model", *encoders, "--tasks", "mrpc", "--recipes", "asp", "--seeds", "0"]
    words += ["--grid", "learning_rate=1e-3,1e-4", "per_device_train_batch_size=4", "--dataset_name", str(rows)]
    words += ["--max_steps", "1", "--use_cpu", "--report_to", "none", "--output_dir", str(tmp_path / "out")]
    assert command_line.main(words) == 0
    page, records = capsys.readouterr().out, RecordFile(tmp_path / "out/results.jsonl").records
    assert len(records) == 3 * len(encoders)  # two points on rows held out, and the better one
    for name in encoders:
        assert f"## {Path(name).name}" in page or Path(name).name in page
    assert page.count("### Beside published numbers") == 2  # of BERT and of DistilBERT
    assert "| NxMTransformer 2:4, its Table 1 | 90.8 |" in page and "ours: `asp`" in page
    assert command_line.main(words) == 0
    assert capsys.readouterr().out.count("1 trials, 0 to run") == len(encoders)


def test_every_point_of_squad_is_one_that_its_script_accepts():
    request = make_request("--preset", "squad", "--doc_stride", "64")
    rhos = {variant.recipe: set() for _, variant in request.pairs}
    for task, variant in request.pairs:
        points = request.points(task, variant)
        rhos[variant.recipe] |= {dict(point).get("rho") for point in points}
        assert {dict(point)["learning_rate"] for point in points} == {"3e-5", "5e-5", "8e-5"}
        for point in points:
            trial = request.trial(task, variant, 0, point)
            check_trial(trial)
            script, sparsity, args = squad_script.read_options(trial.command_line(Path("out")))
            assert script.dataset_name == "rajpurkar/squad" and script.doc_stride == 64 and script.hold_out == 0
            assert args.num_train_epochs == 3 and sparsity == trial.config
    assert rhos == {name: {None} for name in rhos} | {"admm": {"1e-3", "3e-3"}}


@pytest.fixture
def squad(tmp_path):
    """Write a model with the name of BERT, and texts with questions that its windows cut."""
    torch.manual_seed(0)
    made_data.write("question_answering", tmp_path, count=40)
    (tmp_path / "model").rename(tmp_path / "bert-base-uncased")
    made_data.questions(40, 2).to_parquet(tmp_path / "rows/validation-00000-of-00001.parquet")
    return ["--model", str(tmp_path / "bert-base-uncased"), "--dataset_name", str(tmp_path / "rows")]


def test_squad_runs_on_a_tiny_model_with_windows_to_the_page(squad, tmp_path, trials_in_this_process, capsys):
    words = [*SQUAD_WORDS, *squad, "--seeds", "0", "--max_steps", "2", "--use_cpu", "--report_to", "none"]
    words += ["--grid", "learning_rate=1e-3", "rho=1e-3,1e-2", "per_device_train_batch_size=4"]
    words += ["--output_dir", str(tmp_path / "out")]
    assert command_line.main(words) == 0
    page, records = capsys.readouterr().out, RecordFile(tmp_path / "out/results.jsonl").records
    final = {record["recipe"]: record for record in records.values() if not record["hold_out"]}
    assert len(records) == 4 and {*final} == {"dense", "admm"}  # two points on rows held out, the better, and dense
    for recipe, record in final.items():
        assert len(record["predictions"]) == 40 and record["metrics"]["train_samples"] > 40  # rows, and windows
        both = [100 * record["metrics"][f"eval_{name}"] for name in ("exact_match", "f1")]
        assert sum(record["predictions"]) / 40 == pytest.approx(both[1] / 100)
        assert f"| ours: `{recipe}` | {both[0]:.1f} / {both[1]:.1f} |" in page
    assert "sparse-1_2, its card, mean of five seeds | 80.5 / 88.2 |" in page
    assert "| recipe | seeds | f1 | exact_match | agrees with dense | gap closed |" in page
    assert "Tried on 10% of the training rows, held out" in page
    assert command_line.main(words) == 0
    assert "2 trials, 0 to run" in capsys.readouterr().out


def test_what_question_answering_has_no_use_for_is_refused(squad, tmp_path):
    words = [*SQUAD_WORDS, *squad, "--output_dir", str(tmp_path / "out"), "--use_cpu"]
    for more, told in (
        (["--max_train_samples", "5"], "max_train_samples"),
        (["--recipes", "small", "--from_scratch", "True"], "no pre-trained weights to answer questions with"),
        (["--train_sampling_strategy", "group_by_length"], "lose their order"),
    ):
        with pytest.raises(SystemExit, match=told):
            command_line.main([*words, *more])
    assert not (tmp_path / "out").exists()


@pytest.fixture
def opt(tmp_path):
    make_model("opt").save_pretrained(tmp_path / "opt-125m")
    make_tokenizer(special=False).save_pretrained(tmp_path / "opt-125m")
    (tmp_path / "text.txt").write_text("\n".join(make_texts(200)))
    return str(tmp_path / "opt-125m")


def test_opt_wikitext_runs_on_a_tiny_model_and_goes_on(opt, tmp_path, capsys):
    text = str(tmp_path / "text.txt")
    words = ["--preset", "opt-wikitext", "--model", opt, "--recipes", "dense", "asp", "--output_dir", str(tmp_path)]
    words += ["--text", text, "--held-out", text, "--context", "16", "--samples", "4", "--steps", "5"]
    words += ["--methods", "magnitude", "wanda", "--patterns", "2:4"]
    assert command_line.main(words) == 0
    first = capsys.readouterr().out
    rows = [line.split("|")[1:-1] for line in first.splitlines() if line.startswith("| ")]
    shown = {(row[0].strip(), row[1].strip(" `")): [cell.strip() for cell in row[2:]] for row in rows[1:]}
    assert {*shown} == {("trained", "dense"), ("tuned", "dense"), ("tuned", "asp")} | {
        ("pruned", method) for method in ("magnitude", "wanda")
    }
    assert all(1 < float(cells["dense" not in name]) < 100 for name, cells in shown.items())
    for more in ([], ["--render"]):
        assert command_line.main([*words, *more]) == 0
        again = capsys.readouterr().out
        assert again.count("perplexity") == 0 and again.splitlines()[-1] == first.splitlines()[-1]


def test_the_options_of_opt_wikitext_are_those_of_its_script():
    options, more = command_line.parse_arguments(["--preset", "opt-wikitext"])
    study = parse_arguments(command_line.language_model_words(options, more, "facebook/opt-125m"))
    assert study.held_out == "Salesforce/wikitext:wikitext-2-raw-v1:test" and study.context == 2048
    assert study.output_dir.name == "opt-125m" and study.seeds == [0]
    assert all(NxMConfig(recipe.split()[0]) for recipe in study.recipes)


def test_what_has_no_meaning_for_language_models_is_refused(tmp_path):
    for words in (["--tasks", "rte"], ["--search", "3"], ["--grid", "rho=1"], ["--sweep", "rho"], ["--keep_models"]):
        with pytest.raises(SystemExit, match=f"{words[0]} cannot be used with --preset opt-wikitext"):
            command_line.main(["--preset", "opt-wikitext", *words, "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
