"""The report of training runs: one HTML page that needs nothing else, and pictures where matplotlib is installed."""

from collections.abc import Sequence
from pathlib import Path

from nxm_hf.report.charts import charts
from nxm_hf.report.costs import Cost, cost
from nxm_hf.report.page import page
from nxm_hf.report.pictures import write_pictures
from nxm_hf.report.run import Run, read_run, read_runs

__all__ = ["PAGE", "Cost", "Run", "charts", "cost", "page", "read_run", "read_runs", "write_report"]
PAGE = "report.html"


def write_report(folders: Sequence[str | Path]) -> list[Path]:
    """Draw the runs in these output directories into the first of them; returns what was written, the page first."""
    runs = read_runs(folders)
    written = runs[0].folder / PAGE
    written.write_text(page(runs), encoding="utf-8")
    return [written, *write_pictures(charts(runs), runs[0].folder)]
