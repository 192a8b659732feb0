"""The figure of a metric against the similarity of ADMM's masks, and the thresholds of theory beside it."""

from shutil import copytree

import pytest
import torch

from benchmarks.admm_similarity import main, ratios, strengths
from benchmarks.glue.comparison.results import ComparisonResults
from benchmarks.glue.comparison.trials import Trial
from nxm_hf.patterns import parse
from tests.support.comparison_trials import POINT, fake_record, write_trials
from tests.support.models import make_bert

RECIPES = {"dense": 0.9, "asp": 0.6, "admm rho=0.1": 0.7, "admm rho=0.001": 0.8, "admm rho=1 start=C": 0.5, "admm": 0.9}


@pytest.fixture
def comparison(model, rows, tmp_path):
    more = ("--dataset_name", rows, "--use_cpu", "--report_to", "none", "--per_device_train_batch_size", "4")
    trials = [Trial("mrpc", recipe, seed, POINT, 0.0, model, more) for recipe in RECIPES for seed in (0, 1)]
    return write_trials(tmp_path / "out", [fake_record(trial, RECIPES[trial.recipe]) for trial in trials])


def test_only_admm_with_a_strength_alone_is_drawn_in_the_order_of_strengths(comparison):
    found = strengths(ComparisonResults.read(comparison).models[0], "mrpc")
    assert [(rho, runs.first["recipe"]) for rho, runs in found.items()] == [
        (0.001, "admm rho=0.001"),
        (0.1, "admm rho=0.1"),
    ]


def test_a_ratio_is_of_the_largest_pruned_gradient_and_the_smallest_kept_weight():
    weight = torch.tensor([[4.0, -1.0, 2.0, 0.5, 3.0, 3.0, 0.0, -1.0]])
    grad = torch.tensor([[9.0, -3.0, 9.0, 1.0, 9.0, 9.0, 6.0, 2.0]])
    assert ratios(grad, weight, parse("2:4")).tolist() == [3 / 2, 6 / 3]


@pytest.mark.parametrize("factor, rests", [(1.05, True), (0.95, False)])
def test_masks_rest_above_the_ratio_and_flip_below_it(factor, rests):
    """At the fixed point of ADMM, with a gradient that does not change, the dual variable outgrows a kept weight."""
    weight = torch.nn.Parameter(torch.tensor([[2.0, 1.0, 0.0, 0.0]]))
    grad = torch.tensor([[0.0, 0.0, -0.4, -0.1]])
    pattern = parse("2:4")
    (limit,) = ratios(grad, weight.detach(), pattern).tolist()
    dual = -grad / (factor * limit)
    assert torch.equal(pattern.mask((weight.detach() + dual).abs()), pattern.mask(weight.detach().abs())) is rests


def test_the_figure_and_the_table_have_every_strength(comparison, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    words = ["--comparison", str(comparison), "--task", "mrpc", "--batches", "2", "--output", str(tmp_path / "a.svg")]
    main(words)
    shown, drawn = capsys.readouterr().out, (tmp_path / "a.svg").read_text()
    assert "| 0.001 | 2 | 0.9400 |" in shown and "| 0.1 | 2 | 0.9350 |" in shown
    assert all(f">{text}</text>" in drawn for text in ("0.001", "0.1", "50%", "90%", "99%", "dense", "asp"))
    main([*words[:-1], str(tmp_path / "b.svg")])
    assert (tmp_path / "b.svg").read_text() == drawn and capsys.readouterr().out == shown


def test_thresholds_are_those_of_the_weights_that_are_named(comparison, tmp_path, capsys, model):
    pytest.importorskip("matplotlib")
    copytree(model, tmp_path / "other")
    make_bert(seed=1).save_pretrained(tmp_path / "other")
    words = ["--comparison", str(comparison), "--task", "mrpc", "--batches", "2", "--output", str(tmp_path / "a.svg")]
    limits = []
    for more in ([], ["--weights", model], ["--weights", str(tmp_path / "other")]):
        main([*words, *more])
        limits.append(capsys.readouterr().out.splitlines()[-1])
    assert limits[0] == limits[1] != limits[2]


def test_a_comparison_without_strengths_is_refused(model, tmp_path):
    record = fake_record(Trial("mrpc", "asp", 0, POINT, model=model), 0.5)
    folder = write_trials(tmp_path / "out", [record])
    with pytest.raises(SystemExit, match=r"fewer than two 'admm rho=\.\.\.'"):
        main(["--comparison", str(folder), "--task", "mrpc", "--output", str(tmp_path / "a.svg")])
