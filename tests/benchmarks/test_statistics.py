"""Scores, and the bootstrap of their differences."""

import math

import numpy as np
import pytest

from benchmarks.glue.comparison import statistics
from benchmarks.glue.comparison.trials import Trial
from tests.support.comparison_trials import (
    POINT,
    fake_labels,
    fake_record,
)
from tests.support.example_scripts import glue_metric


def by_seed(recipe: str, right: float, task: str = "mrpc", seeds=(0, 1, 2), rows: int = 60, **words) -> dict[int, dict]:
    trials = [Trial(task, recipe, seed, POINT, **words) for seed in seeds]
    return {trial.seed: fake_record(trial, right, rows) for trial in trials}


def test_the_geometric_mean_of_the_papers_table_is_the_papers_average():
    table = {
        81.78: (84.5, 84.8, 92.5, 91.6, 56.7, 89.6, 91.7, 70.7),
        78.84: (83.3, 83.4, 91.9, 90.6, 51.7, 88.7, 88.1, 63.9),
        80.49: (82.3, 83.4, 92.3, 90.4, 55.3, 89.3, 90.8, 68.6),
    }
    for average, (matched, mismatched, sst2, qnli, cola, stsb, mrpc, rte) in table.items():
        metrics = {
            "mnli": {"eval_accuracy": matched, "eval_mismatched_accuracy": mismatched},
            "sst2": {"eval_accuracy": sst2},
            "qnli": {"eval_accuracy": qnli},
            "cola": {"eval_matthews_correlation": cola},
            "stsb": {"eval_pearson": 0.0, "eval_spearmanr": stsb},
            "mrpc": {"eval_f1": mrpc, "eval_accuracy": 0.0},
            "rte": {"eval_accuracy": rte},
            "qqp": {"eval_f1": 1.0, "eval_accuracy": 1.0},
            "wnli": {"eval_accuracy": 1.0},
        }
        numbers = [n for task, of in metrics.items() for n in statistics.paper_scores([{"task": task, "metrics": of}])]
        assert len(numbers) == 8 and statistics.geometric_mean(numbers) == pytest.approx(average, abs=0.006)
    assert math.isnan(statistics.geometric_mean([0.5, 0.0])) and math.isnan(statistics.geometric_mean([]))


@pytest.mark.parametrize("seeds", [(0, 1, 2), (4,)])
@pytest.mark.parametrize("task", ["mrpc", "cola", "stsb"])
def test_the_interval_is_that_of_the_bootstrap_written_out(task, seeds, monkeypatch):
    monkeypatch.setattr(statistics, "REPLICATES", 200)
    ours, theirs = (by_seed(name, right, task, seeds) for name, right in (("admm", 0.8), ("asp", 0.6)))
    labels = fake_labels(task, 60)
    scores = statistics.row_scores(task, np.asarray(labels), [*ours.values(), *theirs.values()])
    found = statistics.paired_difference(ours, theirs, scores)
    metric = glue_metric.METRICS[statistics.metrics_of(task)[0]]
    of_rows, of_seeds = (statistics.generator(task, what) for what in ("rows", "seeds"))
    rows = [[int(row) for row in of_rows.integers(60, size=60)] for _ in range(statistics.REPLICATES)]
    drawn = of_seeds.integers(len(seeds), size=(statistics.REPLICATES, len(seeds)))
    values = []
    for replicate in range(0, statistics.REPLICATES, 7):
        total = 0.0
        for place in drawn[replicate]:
            for sign, side in ((1, ours), (-1, theirs)):
                said = side[seeds[place]]["predictions"]
                picked = [said[row] for row in rows[replicate]], [labels[row] for row in rows[replicate]]
                total += sign * metric(*map(np.asarray, picked))
        values.append(total / len(seeds))
    assert found.replicates[::7] == pytest.approx(np.asarray(values))
    assert found.low, found.high == pytest.approx(np.quantile(found.replicates, [0.025, 0.975]))
    main = {"mrpc": "eval_f1", "cola": "eval_matthews_correlation", "stsb": "eval_pearson"}[task]
    apart = [ours[seed]["metrics"][main] - theirs[seed]["metrics"][main] for seed in seeds]
    assert found.mean == pytest.approx(sum(apart) / len(apart)) and found.seeds == len(seeds)


@pytest.mark.parametrize("task", ["mrpc", "cola", "stsb", "rte"])
def test_constant_sides_score_in_every_replicate_what_the_metric_gives(task, monkeypatch):
    monkeypatch.setattr(statistics, "REPLICATES", 40)
    labels = np.eye(1, 20)[0]  # so that in some replicates they are constant too
    records = [{"name": str(answer), "predictions": [answer] * 20} for answer in (0, 1)]
    metric = statistics.metrics_of(task)[0]
    rows = statistics.generator(task, "rows").integers(20, size=(statistics.REPLICATES, 20))
    for answer, (_, scores) in enumerate(statistics.row_scores(task, labels, records).items()):
        said = np.full(20, answer)
        expected = [glue_metric.scores([metric], said, labels[drawn])[metric] for drawn in rows]
        assert scores == pytest.approx(expected, nan_ok=True)


def test_with_one_seed_the_interval_agrees_with_that_of_scipy():
    from scipy.stats import bootstrap

    ours, theirs = (by_seed(name, right, "rte", (0,), 300) for name, right in (("admm", 0.8), ("asp", 0.7)))
    labels = np.asarray(fake_labels("rte", 300))
    found = statistics.paired_difference(ours, theirs, statistics.row_scores("rte", labels, [ours[0], theirs[0]]))
    right = [(np.asarray(side[0]["predictions"]) == labels).astype(float) for side in (ours, theirs)]
    wide = bootstrap((right[0] - right[1],), np.mean, n_resamples=5000, method="percentile", rng=0).confidence_interval
    assert (found.low, found.high) == pytest.approx((wide.low, wide.high), abs=0.012)


def test_a_recipe_differs_from_itself_by_nothing_whatever_is_drawn():
    asp = by_seed("asp", 0.7)
    found = statistics.paired_difference(
        asp, asp, statistics.row_scores("mrpc", np.asarray(fake_labels("mrpc", 60)), [*asp.values()])
    )
    assert found.mean == found.low == found.high == 0 and not found.replicates.any()


def test_without_rows_only_seeds_are_drawn_and_of_one_seed_there_is_no_interval():
    ours, theirs = by_seed("admm", 0.8), by_seed("asp", 0.6)
    scores = statistics.row_scores("mrpc", None, [*ours.values(), *theirs.values()])
    found = statistics.paired_difference(ours, theirs, scores)
    apart = [ours[seed]["metrics"]["eval_f1"] - theirs[seed]["metrics"]["eval_f1"] for seed in range(3)]
    assert not found.rows and min(apart) <= found.low <= found.mean <= found.high <= max(apart)
    single = statistics.paired_difference({0: ours[0]}, theirs, scores)
    assert single.mean == pytest.approx(apart[0]) and math.isnan(single.low) and math.isnan(single.high)
    assert statistics.paired_difference({5: ours[0]}, theirs, scores) is None


def test_the_same_answer_always_scores_what_trying_each_answer_gives():
    labels = np.asarray(fake_labels("mrpc", 60))
    ones = int(labels.sum())
    found = statistics.constant_scores("mrpc", labels)
    assert found["f1"] == pytest.approx(2 * ones / (60 + ones)) and found["accuracy"] == max(ones, 60 - ones) / 60
    assert statistics.constant_scores("cola", np.asarray(fake_labels("cola", 60)))["matthews_correlation"] == 0
    assert math.isnan(statistics.constant_scores("stsb", np.asarray(fake_labels("stsb", 60)))["pearson"])


def test_agreement_counts_rows_and_of_scores_it_is_their_correlation():
    one, other = {"task": "rte", "predictions": [0, 1, 1, 0]}, {"task": "rte", "predictions": [0, 1, 0, 0]}
    assert statistics.agreement(one, other) == 0.75
    one, other = {"task": "stsb", "predictions": [1.0, 2.0, 3.0]}, {"task": "stsb", "predictions": [2.0, 4.0, 6.0]}
    assert statistics.agreement(one, other) == pytest.approx(1.0)
