"""The cost of a finished training."""

import json

import pytest

from nxm_hf import NxMConfig, analysis
from nxm_hf.cli.main import main
from nxm_hf.report import cost, read_runs
from nxm_hf.report.training_page import training_page
from tests.support.models import make_bert
from tests.support.report_runs import RECIPES

COSTS = {"admm": (1.0, 1.0), "sr-ste": (5 / 6, 5 / 6), "rigl": (5 / 6, 5 / 6)}


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_a_training_has_cost_is_what_its_recipe_costs_before(recipe, made, capsys):
    (run,) = read_runs([made[recipe]])
    found = cost(run, tokens=8)
    before = analysis.training_flops(make_bert(), NxMConfig(recipe, "2:4", **RECIPES[recipe]), 12, tokens=8)
    assert str(found).startswith(str(before)) and found.flops == before
    assert before.ratio == pytest.approx(COSTS[recipe][0])  # of three products Y alone is sparse
    assert found.counted == run.state["total_flos"] > 0
    assert found.spent == pytest.approx(found.counted * before.overall)
    assert main(["flops", str(made[recipe]), "--tokens", "8"]) == 0
    assert capsys.readouterr().out == f"{found}\n"
    assert f"{cost(run).flops.overall:.4g}</td>" in training_page([run])


def test_of_a_training_that_ended_early_only_what_was_done_is_counted(runs):
    folder = runs["sr-ste"]
    for name in ("trainer_state.json", "checkpoint-12/trainer_state.json"):
        words = json.loads((folder / name).read_text()) if (folder / name).is_file() else None
        if words:
            (folder / name).write_text(json.dumps({**words, "max_steps": 48}))
    words = json.loads((folder / "nxm_config.json").read_text())
    (folder / "nxm_config.json").write_text(json.dumps({**words, "warmup": 0.125}))
    found = cost(*read_runs([folder]))
    assert (found.steps, found.planned) == (12, 48) and "12 of 48 steps were done." in str(found)
    assert found.flops.ratio == pytest.approx((6 * 1 + 6 * 5 / 6) / 12)  # 6 of the 12 were warm-up
    total = analysis.training_flops(make_bert(), NxMConfig("sr-ste", "2:4", warmup=0.125), 48)
    assert found.flops.total * 4 == total.total and found.flops.ratio > total.ratio


UNKNOWN = {
    "dense": (lambda folder: [path.unlink() for path in folder.rglob("nxm_config.json")], "no record of a recipe"),
    "custom": (lambda folder: _edit(folder / "nxm_config.json", recipe="custom"), "a method of its own"),
    "modelless": (lambda folder: [path.unlink() for path in folder.rglob("model.safetensors")], "holds no model"),
    "endless": (lambda folder: _edit(folder / "checkpoint-12/trainer_state.json", max_steps=0), "12 of 0 steps"),
}  # fmt: skip


def _edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_cost_that_is_not_known_is_one_sentence(name, runs, capsys):
    change, why = UNKNOWN[name]
    (runs["admm"] / "trainer_state.json").unlink(missing_ok=True)
    change(runs["admm"])
    assert main(["flops", str(runs["admm"])]) == 2
    assert why in capsys.readouterr().err
    assert why in training_page(read_runs([runs["admm"]]))
