"""The report of training runs or of pruned models: one self-contained HTML page, and PNG files of the charts."""

from collections.abc import Sequence
from pathlib import Path

from nxm_hf.report.charts import charts
from nxm_hf.report.flops import Cost, cost
from nxm_hf.report.png import write_pngs
from nxm_hf.report.pruning_page import is_pruned_model, pruning_page
from nxm_hf.report.run import Run, read_run, read_runs
from nxm_hf.report.training_page import training_page

__all__ = ["PAGE", "Cost", "Run", "charts", "cost", "read_run", "read_runs", "training_page", "write_report"]
PAGE = "report.html"


def write_report(folders: Sequence[str | Path]) -> list[Path]:
    """Write the report of several directories into the first of them.

    Args:
        folders: Output directories of trainings, or only directories that `nxm prune` or `nxm convert` wrote.

    Returns:
        The written files: the page and, of trainings and with matplotlib, the charts.

    Raises:
        ValueError: if a directory cannot be read, or none of them is of a training with nxm_hf.
        FileNotFoundError: if a directory holds no log of a Trainer.
    """
    if all(map(is_pruned_model, folders)):
        page = Path(folders[0]) / PAGE
        page.write_text(pruning_page(folders), encoding="utf-8")
        return [page]
    runs = read_runs(folders)
    page = runs[0].folder / PAGE
    page.write_text(training_page(runs), encoding="utf-8")
    return [page, *write_pngs(charts(runs), runs[0].folder)]
