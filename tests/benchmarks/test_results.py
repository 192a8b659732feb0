"""The results of a folder: what belongs together, and what is missing."""

from dataclasses import replace

import pytest

from benchmarks.glue.comparison.page import render
from benchmarks.glue.comparison.records import Plan
from benchmarks.glue.comparison.trials import Trial
from tests.support.comparison_trials import (
    POINT,
    fake_record,
    table_rows,
    write_trials,
)


def test_what_was_planned_and_is_missing_is_listed(model, tmp_path, without_plots):
    trials = [Trial("mrpc", recipe, seed, POINT, model=model) for recipe in ("dense", "asp") for seed in (0, 1)]
    write_trials(tmp_path, [fake_record(trial, 0.7) for trial in trials[:3]])
    assert "- mrpc, `asp`, seed 1" in render(tmp_path)  # by what the others have
    Plan(tmp_path / "plan.json").add([*trials, Trial("rte", "ste", 0, POINT, model=model)], "python compare.py --this")
    text = render(tmp_path)
    assert (
        "**2 trials are missing**" in text
        and "- rte, `ste`, seed 0, learning_rate=1e-4" in text
        and "compare.py --this" in text
    )


def test_what_a_grid_chose_anew_takes_the_place_of_what_it_chose_before(model, tmp_path, without_plots):
    old, new = (Trial("mrpc", "dense", 0, (("learning_rate", rate),), model=model) for rate in ("1e-3", "1e-4"))
    asp = replace(new, recipe="asp")
    write_trials(tmp_path, [fake_record(old, 0.5), fake_record(new, 0.9), fake_record(asp, 0.7)])
    assert {"dense [learning_rate=1e-3]", "dense [learning_rate=1e-4]"} <= set(table_rows(render(tmp_path), "mrpc", 0))
    plan = Plan(tmp_path / "plan.json")
    plan.add([old], "first")
    plan.add([new], "second")
    assert plan.read() == ([new], ["first", "second"])
    shown = table_rows(render(tmp_path), "mrpc", 0)
    assert (
        list(shown)[1:] == ["dense", "asp"]
        and shown["dense"][1] == f"{fake_record(new, 0.9)['metrics']['eval_f1']:.4f}"
    )


def test_patterns_and_budgets_are_held_against_their_own_kind(model, tmp_path, without_plots):
    grid = {"short": (*POINT, ("max_steps", "50")), "long": (*POINT, ("max_steps", "100"))}
    rights = {"dense": 0.9, "asp": 0.6, "asp pattern=1:4": 0.5, "admm pattern=1:4": 0.7}
    records = [
        fake_record(Trial("mrpc", recipe, 0, point, model=model), right - 0.1 * (budget == "short"))
        for budget, point in grid.items()
        for recipe, right in rights.items()
    ]
    write_trials(tmp_path, records)
    f1 = {(r["recipe"], r["grid"][1][1]): r["metrics"]["eval_f1"] for r in records}
    text = render(tmp_path)
    shown = table_rows(text, "mrpc", 1)
    named = {"50": "", "100": " [max_steps=100]"}
    assert "for max_steps=50 where no other budget is named" in text
    for steps in named:
        apart = f1["admm pattern=1:4", steps] - f1["asp pattern=1:4", steps]
        assert float(shown[f"admm pattern=1:4{named[steps]}"][0].split()[0]) == pytest.approx(apart, abs=6e-5)
        apart = f1["asp", steps] - f1["dense", steps]
        assert float(shown[f"asp{named[steps]}"][1].split()[0]) == pytest.approx(apart, abs=6e-5)
