"""The comparison on the demo's model and rows, which needs neither network nor data."""

import json

import pytest

from benchmarks.glue.comparison import command_line
from tests.support.example_scripts import demo


def test_recipes_are_compared_on_the_demo_from_one_start(
    tmp_path, monkeypatch, capsys, trials_in_this_process, without_plots
):
    for name, value in (("TRAIN", 64), ("HELD_OUT", 64), ("STEPS", 8)):
        monkeypatch.setattr(demo, name, value)
    out = tmp_path / "a b"
    asked = ["--tasks", "demo", "--recipes", "asp", "--seeds", "0", "--output_dir", str(out)]
    assert command_line.main(asked) == 0
    records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [(record["task"], record["recipe"], record["steps"]) for record in records] == [("demo", "asp", 8)]
    assert records[0]["model"] == str(out / "demo/start") and len(records[0]["predictions"]) == 64
    assert str(out / "demo/rows/with-not") in records[0]["more"]
    assert "learning_rate=0.001" in (out / "comparison.md").read_text()
    start = (out / "demo/start/model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    assert command_line.main(asked) == 0
    assert "1 trials, 0 to run" in capsys.readouterr().out
    assert (out / "demo/start/model.safetensors").stat().st_mtime_ns == start


def test_what_is_misspelled_fails_before_the_start_of_the_demo_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "TRAIN", 64)
    for wrong in (["--recipes", "amdm"], ["--grid", "rhoo=1"], ["--lerning_rate", "1"]):
        with pytest.raises(SystemExit, match=r"amdm|rhoo|lerning_rate"):
            command_line.main(["--tasks", "demo", *wrong, "--output_dir", str(tmp_path)])
    assert not (tmp_path / "demo/start/model.safetensors").exists()


@pytest.mark.parametrize(
    "more", [["--tasks", "demo", "mrpc"], ["--tasks", "demo", "--model_name_or_path", "bert-base-uncased"]]
)
def test_the_demo_is_compared_alone(more, tmp_path):
    with pytest.raises(SystemExit, match="write --tasks demo, with no other and no model"):
        command_line.main([*more, "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_what_is_said_of_a_demo_goes_before_its_own(tmp_path, monkeypatch):
    """And a budget in epochs takes the place of one in steps."""
    monkeypatch.setattr(
        demo, "prepare", lambda folder: {"--model_name_or_path": "m", "--max_steps": 8, "--use_cpu": True}
    )
    asked, more = command_line.parse_arguments(["--tasks", "demo", "--num_train_epochs", "2", "--use_cpu", "False"])
    assert command_line.with_demo(asked, more) == ["--num_train_epochs", "2", "--use_cpu", "False"]
    assert (asked.models, asked.grid) == (["m"], ["learning_rate=0.001"])
    asked, more = command_line.parse_arguments(["--tasks", "demo", "--grid", "learning_rate=1e-4"])
    assert command_line.with_demo(asked, more) == ["--max_steps", "8", "--use_cpu", "True"]
    assert asked.grid == ["learning_rate=1e-4"]
    asked, more = command_line.parse_arguments(["--tasks", "demo", "--preset", "nxmtransformer"])
    assert command_line.with_demo(asked, more) and asked.grid is None  # the preset's rates are tried
