"""Searches by Optuna: where they go on, and what they try."""

import sys

import pytest

from benchmarks.glue.comparison import command_line
from benchmarks.glue.comparison.records import TRIALS_FOLDER
from benchmarks.glue.comparison.runner import Runner
from benchmarks.glue.comparison.search import Search, read_space
from benchmarks.glue.comparison.trials import Trial
from tests.support.comparison_trials import (
    POINT,
    comparison_arguments,
    fake_record,
    write_trials,
)


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """Return the URL of one database for several studies: to make a new one takes a second."""
    return f"sqlite:///{tmp_path_factory.mktemp('search')}/search.db"


def test_a_search_goes_on_where_it_was_and_ends_with_the_best_point(model, rows, tmp_path, capsys, without_plots):
    pytest.importorskip("optuna")
    more = ("--dataset_name", rows, "--max_steps", "2", "--use_cpu", "--report_to", "none")
    rights = {"0.001": 0.6, "0.002": 0.9, "0.003": 0.7}
    trials = [
        (Trial("mrpc", "asp", 0, (("learning_rate", rate),), held_out, model, more), right)
        for rate, right in rights.items()
        for held_out in (0.1, 0.0)
    ]
    write_trials(tmp_path, [fake_record(trial, right) for trial, right in trials])
    arguments = comparison_arguments(
        model, rows, tmp_path, "--search", "4", "--space", "learning_rate=0.001,0.002,0.003", "rho=1:2"
    )
    with pytest.raises(SystemExit, match="'rho'"):
        command_line.main(arguments)
    arguments = arguments[:-1]
    command_line.main(arguments)
    shown = capsys.readouterr().out
    assert "0 of 4 points are tried" in shown and "| learning_rate=0.002 |" in shown
    command_line.main(arguments)
    assert "4 of 4 points are tried" in capsys.readouterr().out
    assert not list((tmp_path / TRIALS_FOLDER).glob("*.log"))  # every trial was there already


@pytest.mark.parametrize("points, whole", [(3, False), (4, True), (9, True)])
def test_a_search_that_can_try_every_point_does_so_first(points, whole, storage, tmp_path):
    """Points that are drawn left one of three choices out of nine trials, once in 38 searches."""
    pytest.importorskip("optuna")
    space = read_space(["learning_rate=1e-4,1e-3", "num_train_epochs=2,4"])
    search = Search(Runner(tmp_path, [""], False), space, points, [0], storage)
    trial = Trial("mrpc", "asp", points, (*POINT, ("weight_decay", "0")), 0.1, "a/model")  # a study of its own
    for _ in range(2):  # whoever comes second finds them queued
        study = search.study(trial)
    assert len(study.trials) == (4 if whole else 0)

    def draw() -> tuple:
        asked = search.ask(study)
        return asked, tuple(axis.suggest(asked, key) for key, axis in space.items())

    drawn = [draw() for _ in range(4)]
    if whole:
        assert {point for _, point in drawn} == {("1e-4", "2"), ("1e-4", "4"), ("1e-3", "2"), ("1e-3", "4")}
        for asked, _ in drawn[:3]:
            study.tell(asked, 0.5)
        study = search.study(trial)  # the fourth was killed, and is tried again
        assert draw()[1] == drawn[3][1]


def test_searches_that_share_a_study_try_different_points_and_again_the_same(tmp_path):
    """Whoever else is at work: two that begin together once drew the same chance, and each point was tried twice."""
    pytest.importorskip("optuna")
    # What is drawn follows from the trial's name, which must not have the name of a temporary folder in it.
    trial, space = Trial("mrpc", "asp", 0, POINT, 0.1, "a/model"), read_space(["learning_rate=1e-5:1e-3:log"])
    drawn = []
    for folder in ("first", "again"):
        storage = f"sqlite:///{tmp_path / folder}.db"
        searches = [Search(Runner(tmp_path, [""], False), space, 4, [0], storage) for _ in range(2)]
        studies = [search.study(trial) for search in searches]
        asked = [search.ask(study) for search, study in zip(searches, studies, strict=True)]
        drawn.append([space["learning_rate"].suggest(one, "learning_rate") for one in asked])
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 2


def test_a_search_without_optuna_says_what_to_install(model, rows, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SystemExit, match="pip install optuna"):
        command_line.main(comparison_arguments(model, rows, tmp_path, "--search", "1"))
