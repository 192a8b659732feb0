"""Published numbers beside ours on the page of a comparison."""

import numpy as np
import pytest

from benchmarks.glue.comparison.page import render
from benchmarks.glue.comparison.published import published_rows
from benchmarks.glue.comparison.statistics import geometric_mean
from benchmarks.glue.comparison.trials import Trial
from tests.support.comparison_trials import POINT, fake_record, write_model, write_trials

# The averages that the paper gives beside its rows; it means the same eight numbers.
AVERAGES = {
    "dense, NxMTransformer, Table 1": 81.8,
    "unstructured ADMM, NxMTransformer, Table 1": 81.3,
    "asp 2:4, NxMTransformer, Table 1": 78.8,
    "NxMTransformer 2:4, its Table 1": 80.5,
    "dense, NxMTransformer, Table 2": 78.5,
    "NxMTransformer 2:4, its Table 2": 76.6,
}


def test_the_numbers_of_the_paper_have_the_averages_that_it_gives():
    rows = [*published_rows("google-bert/bert-base-uncased"), *published_rows("distilbert-base-uncased")]
    found = {
        row["row"]: geometric_mean([value for values in row["scores"].values() for value in values]) for row in rows
    }
    for row, average in AVERAGES.items():
        assert found[row] == pytest.approx(average, abs=0.06)


def test_a_page_has_our_numbers_in_percent_below_the_published_ones(tmp_path, without_plots):
    model = str(write_model(tmp_path / "bert-base-uncased"))
    trials = [Trial(task, "asp", seed, POINT, model=model) for task in ("stsb", "mrpc") for seed in (0, 1)]
    records = [fake_record(trial, 0.7) for trial in trials]
    text = render(write_trials(tmp_path / "out", records))
    (line,) = [line for line in text.splitlines() if line.startswith("| ours: `asp`")]
    for cell, task, metric in zip(line.split("|")[2:4], ("stsb", "mrpc"), ("spearmanr", "f1"), strict=True):
        values = [100 * record["metrics"][f"eval_{metric}"] for record in records if record["task"] == task]
        assert cell.strip() == f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"
    assert "| asp 2:4, NxMTransformer, Table 1 | 88.7 | 88.1 |" in text
    assert "card, mean of five seeds | 88.8 | - |" in text
    assert "BERT's paper" not in text  # it has numbers of neither task


def test_a_model_of_which_nothing_is_published_has_no_such_table(page):
    assert "published" not in page[1]
