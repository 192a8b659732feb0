"""`admm`: its settings."""

import pytest

from nxm_hf import NxMConfig, recipes
from nxm_hf.methods import ADMM
from nxm_hf.methods.schedules import Clock, Constant, Evenly
from nxm_hf.patterns import parse


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"penalty": "decoupled", "rho": 0.1}, 'rho=0.1 is for penalty="coupled".*contraction='),
        ({"contraction": 0.5}, 'contraction=0.5 is for penalty="decoupled".*set rho'),
        ({"penalty": "loss"}, "'coupled', 'decoupled'; got 'loss'"),
        ({"start": "D"}, "'auto', 'A', 'B', 'C'; got 'D'"),
        ({"steps": "day"}, "'auto', 'epoch'; got 'day'"),
        ({"steps": 0}, "at least 1; got 0"),
        ({"rho": 0.1, "dual": 1.5}, "from 0 to 1; got 1.5. Write dual=0.5"),
        ({"dual": "no"}, "from 0 to 1; got 'no'"),
        ({"rho": 0.1, "rho_schedule": "cosine"}, "'constant', 'linear', 'geometric'; got 'cosine'"),
        ({"rho_schedule": "linear"}, "rho_schedule='linear' needs a strength to grow to. Write rho=0.01"),
        ({"rho": 0.1, "rho_start_ratio": 0.1}, 'is for a growing rho. Write rho_schedule="geometric"'),
        ({"rho": 0.1, "rho_schedule": "linear", "rho_start_ratio": 0}, "above 0 and at most 1; got 0.0. Write 0.001"),
        ({"rho": 0.1, "rho_schedule": "linear", "rho_start_ratio": 2}, "above 0 and at most 1; got 2"),
        ({"rho": 0.1, "pull": "kept"}, "'all', 'pruned'; got 'kept'"),
        ({"rho": "large"}, "rho of admm must be a number of at least 0; got 'large'"),
    ],
)
def test_wrong_settings_of_admm_say_what_to_set(settings, says):
    with pytest.raises(ValueError, match=says):
        NxMConfig("admm", settings=settings)


PATTERN = parse("2:4")


def test_the_papers_form_starts_at_the_nearest_sparse_weight_and_the_default_does_not():
    for rho in (0.01, 0, "quantile"):
        assert recipes.admm(PATTERN, rho=rho).start == "B" and recipes.admm(PATTERN, rho=rho, start="C").start == "C"
    assert recipes.admm(PATTERN).start == recipes.admm(PATTERN, penalty="decoupled").start == "C"


def test_fisher_is_the_metric_of_the_projections_too_but_with_an_automatic_rho():
    for settings in ({"rho": 0.1}, {"rho": "quantile"}, {"penalty": "decoupled"}):
        method = recipes.admm(PATTERN, scores="fisher", **settings)
        assert method.scores == method.projection == "fisher"
        for scores in ("auto", "magnitude", "alps"):
            assert recipes.admm(PATTERN, scores=scores, **settings).projection == "magnitude"
    assert recipes.admm(PATTERN, scores="fisher") == recipes.admm(PATTERN)


def test_an_automatic_rho_is_what_it_was():
    expected = ADMM(PATTERN, None, 1.0, "coupled", Evenly(80), "C", True, "fisher", "magnitude", Constant(1.0))
    assert recipes.admm(PATTERN) == expected


def test_a_dual_step_is_a_number_or_a_yes_or_no():
    for dual in (True, False, 0, 1, 0.25):
        assert recipes.admm(PATTERN, rho=0.1, dual=dual).dual == dual


@pytest.mark.parametrize("schedule", ["linear", "geometric"])
def test_the_strength_grows_from_its_first_fraction_to_rho(schedule):
    growth = recipes.admm(PATTERN, rho=0.5, rho_schedule=schedule, rho_start_ratio=0.04).growth
    middle = {"linear": 0.52, "geometric": 0.2}[schedule]
    assert [growth(Clock(step, 10)) for step in (0, 5, 10)] == pytest.approx([0.04, middle, 1.0])
