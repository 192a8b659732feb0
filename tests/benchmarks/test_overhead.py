"""The table of what recipes cost: its rows in one process and on sharded weights."""

import argparse
import sys

import pytest

from benchmarks.overhead import COLUMNS, live_bytes, measure, measure_all, parse, written
from tests.support.group_of_one import group_of_one
from tests.support.models import make_bert

OPTIONS = argparse.Namespace(
    model=None, shape=["2x4"], precision=["fp32"], recipe=["ste settle=0.5"], steps=2, threads=1
)
OPTIONS.profile = OPTIONS.trainer = False


def test_sharded_weights_have_the_state_of_whole_ones():
    model = make_bert()
    whole = measure(model, "2x4", "fp32", "ste settle=0.5", OPTIONS)
    with group_of_one():
        sharded = measure(model, "2x4", "fp32", "ste settle=0.5", OPTIONS)
        assert live_bytes() > 0
    assert whole.keys() == sharded.keys() and {"model", *whole} == {*COLUMNS}
    assert 1.25 <= whole["state"] < 1.3 and whole["state"] == pytest.approx(sharded["state"], abs=0.01)
    assert written({"model": "tiny", **sharded}).count("|") == len(COLUMNS) + 1


def test_a_table_has_a_row_for_each_recipe_of_each_model(tmp_path, capsys):
    make_bert().save_pretrained(tmp_path / "tiny")
    options = argparse.Namespace(**{**vars(OPTIONS), "model": [str(tmp_path / "tiny")], "recipe": ["asp", "ste"]})
    rows = measure_all(options)
    assert [(row["model"], row["recipe"]) for row in rows] == [("tiny", "asp"), ("tiny", "ste")]
    assert capsys.readouterr().out.count("| tiny |") == 2
    measure_all(options, tell=False)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("word", ["--trainer", "--profile"])
def test_what_measures_one_process_is_refused_beside_two(word, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["overhead.py", "--fsdp", word])
    with pytest.raises(SystemExit):
        parse()
    assert "leave out --fsdp" in capsys.readouterr().err
