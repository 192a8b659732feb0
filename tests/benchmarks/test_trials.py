"""Trials: their names, and the command lines that run them."""

import json
from pathlib import Path

import pytest

from benchmarks.glue.comparison.trials import Trial
from nxm_hf import NxMConfig, recipes
from tests.support.comparison_trials import (
    POINT,
)
from tests.support.example_scripts import run_glue


def test_names_of_trials_are_those_of_comparisons_that_already_run():
    trial = Trial(
        "cola", "admm settle=0.3 rho=0.01", 2, POINT, 0.1, "bert-base-uncased", ("--max_steps", "5", "--bf16")
    )
    assert Trial("mrpc", "asp", 0).name == "mrpc-asp-0-460920fe37"
    assert trial.name == "cola-admm-2-1a48672208"


@pytest.mark.parametrize("recipe", [*recipes.names(), "admm settle=0.3 rho=0.01", "asp pattern=4:8"])
def test_run_glue_reads_what_a_trial_says(recipe):
    trial = Trial(
        "rte", recipe, 7, (*POINT, ("warmup", "0.1")) if recipe != "dense" else POINT, 0.1, "m", ("--use_cpu",)
    )
    run = run_glue.read_options(trial.command_line(Path("out")))
    assert run.sparsity == trial.config and run.training.seed == 7 and run.training.learning_rate == 1e-4
    assert (run.data.task, run.data.hold_out, run.model.model_name_or_path) == ("rte", 0.1, "m")


def test_a_taught_trial_learns_from_the_dense_one_of_its_seed_and_options():
    point = (*POINT, ("rho", "0.01"))
    taught = Trial("mrpc", "admm teacher=dense weight=0.9 settle=0.2", 3, point, 0.1, "m", ("--use_cpu",))
    assert taught.teacher == Trial("mrpc", "dense", 3, POINT, 0.1, "m", ("--use_cpu",))
    assert taught.teacher.teacher is None and Trial("mrpc", "admm", 3).teacher is None
    run = run_glue.read_options(taught.command_line(Path("out/trials/here")))
    assert run.model.teacher == str(Path("out/trials") / taught.teacher.name)
    assert json.loads(run.model.distillation) == {"weight": 0.9}
    assert run.sparsity == NxMConfig("admm", settings={"rho": 0.01}, settle=0.2)
