"""The tables of a training report."""

from nxm_hf.report import read_runs
from nxm_hf.report.training_page import training_page
from tests.support.html_reader import Reader
from tests.support.report_runs import read_log


def test_the_summary_shows_the_last_of_each_run_side_by_side(made):
    head, *rows = Reader(training_page(read_runs(list(made.values())))).tables["Summary"]
    table = {row[0]: row[1:] for row in rows}
    assert head[1:] == table["recipe"] == list(made)
    assert table["its verification"] == ["ok"] * 3 and table["its density"][:2] == ["0.5000"] * 2
    assert table["state"] == ["finished, 12 of 12 steps"] * 3 and table["newest saved model"] == ["final model"] * 3
    losses = [[record["loss"] for record in read_log(folder) if "loss" in record][-1] for folder in made.values()]
    assert table["last training loss"] == [f"{loss:.4g}" for loss in losses]
