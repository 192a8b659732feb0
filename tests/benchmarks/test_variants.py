"""Variants: the points of a grid, and sweeps."""

from pathlib import Path

import pytest

from benchmarks.glue.comparison.recipe_text import read_recipe
from benchmarks.glue.comparison.variants import SWEEPS, Variant, points_of_grid, sweep_variants
from nxm_hf.patterns import parse
from tests.support.comparison_trials import (
    make_request,
)
from tests.support.example_scripts import run_glue


def test_a_key_of_the_grid_is_only_tried_where_a_recipe_has_it():
    grid = {"learning_rate": ["1", "2"], "rho": ["0.1", "0.2", "0.3"], "pattern": ["2:4", "4:8"]}
    found = {text: len(points_of_grid(grid, text)) for text in ("dense", "asp", "admm", "admm rho=1", "small", "ste")}
    assert found == {"dense": 2, "asp": 4, "admm": 12, "admm rho=1": 4, "small": 2, "ste": 4}


@pytest.mark.parametrize("name", [name for name in SWEEPS if name != "budget"])
@pytest.mark.parametrize("given", [["dense", "asp"], ["dense", "asp", "admm settle=0.2", "sr-ste", "reset"]])
def test_a_sweep_trains_every_value_once_and_keeps_what_it_is_seen_against(name, given):
    texts = [variant.recipe for variant in sweep_variants(given, [name], ())]
    configs = map(read_recipe, texts)
    trained = [(config.recipe, str(config.pattern), repr(config.method(parse("2:4")))) for config in configs]
    assert texts[: len(given)] == given and len(set(trained)) == len(texts) > len(given) + 1
    assert all(variant == Variant(variant.recipe) for variant in sweep_variants(given, [name], ()))


def test_crossed_sweeps_train_every_value_with_every_other():
    """Figure 2 of Stosic and Stosic: the steps between masks by the density."""
    crossed = "refresh=1,10,100*density=1:4,2:4"
    for given in (["dense", "sr-ste"], ["dense", "asp"]):  # asp has no refresh, so sr-ste is the sweep's own recipe
        found = [variant.recipe for variant in sweep_variants(given, [crossed], ())]
        configs = [read_recipe(text) for text in found if text.startswith("sr-ste")]
        points = {(config.settings.get("refresh", 1), str(config.pattern)) for config in configs}
        assert points == {(steps, pattern) for steps in (1, 10, 100) for pattern in ("1:4", "2:4")}
        assert len(configs) == 6 and found[:2] == given
    with pytest.raises(ValueError, match=r"budget cannot be crossed.*write it by itself"):
        sweep_variants(["asp"], ["density*budget"], ())
    with pytest.raises(ValueError, match="no sweep 'densty'"):
        sweep_variants(["asp"], ["refresh*densty"], ())


def test_a_swept_budget_is_a_part_of_the_budget_given():
    found = sweep_variants(["asp"], ["budget"], ("--bf16", "--max_steps", "200", "--use_cpu"))
    assert found[0] == Variant("asp") and [dict(variant.budget)["max_steps"] for variant in found[1:]] == [
        "50",
        "100",
        "400",
    ]
    assert {variant.more for variant in found[1:]} == {("--bf16", "--use_cpu")}
    (half,) = sweep_variants(["asp"], ["budget=0.5"], ("--num_train_epochs=5",))[1:]
    assert half.budget == (("num_train_epochs", "2.5"),) and half.more == ()
    words = ("--recipes", "asp", "--sweep", "budget=0.5", "--max_steps", "200", "--grid", "learning_rate=1e-3")
    request = make_request(*words)
    trials = request.compared_trials({pair: request.points(*pair)[0] for pair in request.pairs})
    budgets = [run_glue.read_options(trial.command_line(Path("out"))).training.max_steps for trial in trials]
    assert sorted(set(budgets)) == [100, 200]
