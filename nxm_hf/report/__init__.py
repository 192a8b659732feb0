"""The report of training runs or of pruned models: one self-contained HTML page, and PNG files of the charts."""

from collections.abc import Sequence
from pathlib import Path

from nxm_hf.config.hub import write_text
from nxm_hf.report.charts import charts
from nxm_hf.report.flops import Cost, cost
from nxm_hf.report.png import write_pngs
from nxm_hf.report.pruning_page import is_pruned_model, pruning_page
from nxm_hf.report.run import Run, read_run, read_runs
from nxm_hf.report.training_page import training_page

__all__ = ["PAGE", "Cost", "Run", "charts", "cost", "read_run", "read_runs", "training_page", "write_report"]
PAGE = "report.html"


def write_report(folders: Sequence[str | Path], out: str | Path | None = None) -> list[Path]:
    """Write the report of several directories into one.

    Args:
        folders: Output directories of trainings, or only directories that `nxm prune` or `nxm convert` wrote.
        out: The directory to write into; by default the first of `folders`. It is made if needed.

    Returns:
        The written files: the page and, of trainings and with matplotlib, the charts.

    Raises:
        ValueError: if a directory cannot be read, or none of them is of a training with nxm_hf.
        FileNotFoundError: if a directory holds no log of a Trainer.
    """
    of_pruned_models = all(map(is_pruned_model, folders))
    runs = [] if of_pruned_models else read_runs(folders)
    text = pruning_page(folders) if of_pruned_models else training_page(runs)
    page = Path(out or folders[0]) / PAGE
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, text)
    return [page, *write_pngs(charts(runs), page.parent)]
