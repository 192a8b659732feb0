"""What a command line asks for: which points are tried, and how one is chosen."""

from dataclasses import replace

from benchmarks.glue.comparison.request import best_point
from benchmarks.glue.comparison.runner import Runner
from benchmarks.glue.comparison.trials import Trial
from benchmarks.glue.comparison.variants import Variant
from tests.support.comparison_trials import (
    fake_record,
    make_request,
)


def test_the_preset_is_the_papers_table_of_hyper_parameters():
    small_tasks = {"5e-5", "7e-5", "9e-5", "1e-4"}, {"3e-3", "6e-3", "1e-2"}, {"10"}
    large_tasks = {"1e-5", "3e-5", "5e-5"}, {"4e-4", "1e-3", "3e-3"}, {"5"}
    tables = {"cola": small_tasks, "stsb": small_tasks, "mrpc": small_tasks, "rte": small_tasks}
    tables |= {"mnli": large_tasks, "qnli": large_tasks, "sst2": large_tasks}
    request = make_request("--preset", "nxmtransformer", "--recipes", "admm", "asp", "dense")
    for task, (rates, strengths, epochs) in tables.items():
        points = [dict(point) for point in request.points(task, Variant("admm"))]
        assert len(points) == len({tuple(point.items()) for point in points}) == len(rates) * len(strengths) * 2
        for key, values in (("learning_rate", rates), ("rho", strengths), ("num_train_epochs", epochs)):
            assert {point[key] for point in points} == values
        assert {point["per_device_train_batch_size"] for point in points} == {"16", "32"}
        assert len(request.points(task, Variant("asp"))) == 5 * 2
        assert len(request.points(task, Variant("dense"))) == (3 if task in ("mnli", "qnli", "sst2") else 5) * 2


def test_what_the_command_line_says_is_not_asked_of_the_preset():
    words = (
        "--preset",
        "nxmtransformer",
        "--recipes",
        "admm",
        "--max_steps",
        "9",
        "--per_device_train_batch_size",
        "8",
    )
    points = make_request(*words, "--grid", "rho=0.5").points("rte", Variant("admm"))
    assert len(points) == 4 and {key for point in points for key, _ in point} == {"learning_rate", "rho"}
    assert {dict(point)["rho"] for point in points} == {"0.5"}


def test_the_point_is_chosen_on_the_mean_of_the_seeds_and_no_number_never_wins(tmp_path):
    runner = Runner(tmp_path)
    scores = {"a": (0.9, 0.1), "b": (0.6, 0.6), "c": (float("nan"), 1.0)}
    tried = [Trial("rte", "asp", seed, (("x", key),), 0.1) for key in scores for seed in (0, 1)]
    for trial in tried:
        record = fake_record(replace(trial, grid=()), 0.5) | {"name": trial.name, "grid": trial.grid}
        runner.records.add(record | {"metrics": {"eval_accuracy": scores[trial.grid[0][1]][trial.seed]}})
    assert best_point(runner, tried) == (("x", "b"),)
