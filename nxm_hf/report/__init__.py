"""The report of training runs, or of pruned models: one HTML page that needs nothing else, and pictures of runs."""

from collections.abc import Sequence
from pathlib import Path

from nxm_hf.report.charts import charts
from nxm_hf.report.flops import Cost, cost
from nxm_hf.report.png import write_pictures
from nxm_hf.report.pruning_page import is_pruned, pruned_page
from nxm_hf.report.run import Run, read_run, read_runs
from nxm_hf.report.training_page import page

__all__ = ["PAGE", "Cost", "Run", "charts", "cost", "page", "read_run", "read_runs", "write_report"]
PAGE = "report.html"


def write_report(folders: Sequence[str | Path]) -> list[Path]:
    """Draw the runs in these output directories into the first of them; returns what was written, the page first.

    Directories that `nxm prune` or `nxm convert` wrote have a page of their own kind, without pictures.
    """
    if all(map(is_pruned, folders)):
        written = Path(folders[0]) / PAGE
        written.write_text(pruned_page(folders), encoding="utf-8")
        return [written]
    runs = read_runs(folders)
    written = runs[0].folder / PAGE
    written.write_text(page(runs), encoding="utf-8")
    return [written, *write_pictures(charts(runs), runs[0].folder)]
