"""The command line of compare.py: what it refuses, and what it does from end to end."""

import shlex
from pathlib import Path

import pytest

from benchmarks.glue.comparison import command_line
from benchmarks.glue.comparison.options import check_options
from benchmarks.glue.comparison.page import PAGE
from benchmarks.glue.comparison.records import TRIALS_FOLDER, RecordFile
from benchmarks.glue.comparison.trials import check_trial
from tests.support.comparison_trials import (
    comparison_arguments,
    make_request,
    table_rows,
)

README = Path(command_line.__file__).parents[1] / "README.md"
WRONG = [
    (["--recipes", "amdm"], "no recipe 'amdm'.*Write 'admm'"),
    (["--recipes", "admm rhoo=1"], "'rhoo' to set; the recipe 'admm' has rho"),
    (["--recipes", "admm settle"], "'settle' of the recipe .* sets nothing; .*'settle=0.3'"),
    (["--recipes", ""], "A recipe is empty"),
    (["--recipes", "admm rho=-1"], "rho"),
    (["--recipes", "admm teacher=bert"], "write 'admm teacher=dense'"),
    (["--recipes", "admm weight=0.5"], "write 'admm teacher=dense'"),
    (["--recipes", "admm teacher=dense weight=7"], "weight must be a number from 0 to 1"),
    (["--recipes", "small"], "add --from_scratch True"),
    (["--recipes", "small rho=1", "--from_scratch"], "takes a pattern alone; got rho"),
    (["--grid", "learning_rat=1e-4"], "learning_rat.*Did you mean learning_rate"),
    (["--grid", "rho=0.1"], "Neither run_glue.py nor one of the recipes has 'rho'"),
    (["--grid", "seed=1,2"], "write it as --seeds 0 1 2"),
    (["--grid", "learning_rate=fast"], "invalid float value: 'fast'"),
    (["--grid", "learning_rate"], "learning_rate=3e-5,1e-4"),
    (["--grid", "learning_rate=1e-4,"], "learning_rate=3e-5,1e-4"),
    (["--per_device_train_batchsize", "8"], "Did you mean --per_device_train_batch_size"),
    (["--seed", "3"], "--seed is set by each trial.*--seeds 0 1 2"),
    (["--pattern", "4:8"], "--pattern is set by each trial"),
    (["--weight_decay", "much"], "invalid float value: 'much'"),
    (["--sweep", "roh"], "no sweep 'roh'.*Did you mean rho"),
    (["--sweep", "rho=1e-3,"], "has an empty value"),
    (["--search", "3", "--space", "learning_rate"], "write a range after '='"),
    (["--search", "3", "--space", "learning_rate=1e-3:1e-5:log"], "is no range"),
    (["--search", "3", "--space", "rhoo=1:2"], "'rhoo'"),
    (["--search", "3", "--preset", "nxmtransformer"], "leave one of them out"),
    (["--model_name_or_path", "no/where/at/all"], "is no model that can be read"),
]


@pytest.mark.parametrize("words, told", WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_what_is_wrong_fails_before_anything_runs(words, told, model, rows, tmp_path):
    with pytest.raises(SystemExit, match=told):
        command_line.main(comparison_arguments(model, rows, tmp_path / "out", *words))
    assert not (tmp_path / "out").exists()


def test_a_task_that_is_none_is_refused_with_those_there_are(model, rows, tmp_path, capsys):
    with pytest.raises(SystemExit):
        command_line.main(comparison_arguments(model, rows, tmp_path / "out", "--tasks", "mrcp"))
    assert "mrpc" in capsys.readouterr().err


def test_without_a_model_or_results_the_error_says_what_to_type(tmp_path):
    with pytest.raises(SystemExit, match=r"add --model bert-base-uncased"):
        command_line.main(["--output_dir", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"run compare\.py without --render first"):
        command_line.main(["--render", "--output_dir", str(tmp_path)])


def test_the_commands_of_the_readme_are_understood():
    lines = [line for line in README.read_text().splitlines() if line.startswith("python compare.py")]
    assert len(lines) >= 2
    for line in lines:
        request = make_request(*shlex.split(line)[2:])
        check_options(request.more)
        for pair in request.pairs:
            for point in request.points(*pair):
                check_trial(request.trial(*pair, 0, point))


@pytest.mark.slow
def test_recipes_are_trained_taught_kept_and_never_trained_again(model, rows, tmp_path, capsys):
    """The real thing, two trainings: the teacher's weights go once the student has learnt nothing more from them."""
    words = comparison_arguments(model, rows, tmp_path, "--recipes", "dense", "asp teacher=dense", "--devices", "", "")
    command_line.main(words)
    shown = capsys.readouterr().out
    assert "1 teachers, 1 to run" in shown and "2 trials, 1 to run" in shown
    records = RecordFile(tmp_path / "results.jsonl").records
    dense, taught = sorted(records.values(), key=lambda record: record["recipe"], reverse=True)
    assert dense["steps"] == 2 and len(dense["predictions"]) == 8
    assert taught["teacher"] == dense["name"] and taught["teacher_seconds"] == dense["seconds"]
    student = tmp_path / TRIALS_FOLDER / taught["name"]
    assert list((tmp_path / TRIALS_FOLDER / dense["name"]).glob("*.safetensors"))
    assert not list(student.glob("*.safetensors"))
    assert "1.000" in table_rows((tmp_path / PAGE).read_text(), "mrpc", 0)["dense"]
    (tmp_path / TRIALS_FOLDER / "mrpc-asp-0-dead.partial-1").mkdir()
    before = (tmp_path / "results.jsonl").read_bytes()
    command_line.main(words)
    assert "2 trials, 0 to run" in capsys.readouterr().out and (tmp_path / "results.jsonl").read_bytes() == before
