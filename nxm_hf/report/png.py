"""Charts as PNG files, if matplotlib is installed."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nxm_hf.report.charts import Chart


def write_pngs(charts: Sequence[Chart], folder: Path) -> list[Path]:
    """Draw each chart into `folder/report/`, and remove those that an earlier report left there.

    Args:
        charts: The charts.
        folder: The directory of the report.

    Returns:
        The written files; none without matplotlib.
    """
    pictures = folder / "report"
    for old in pictures.glob("*.png"):
        old.unlink()
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    if charts:
        pictures.mkdir(exist_ok=True)
    written = []
    for chart in charts:
        figure = Figure(figsize=(6, 3.6), dpi=160, layout="constrained")
        _draw(chart, figure.subplots())
        written.append(pictures / f"{_file_name(chart.title)}.png")
        figure.savefig(written[-1])
    return written


def _draw(chart: Chart, axes: Any) -> None:  # matplotlib.axes.Axes, which may not be installed
    for line in chart.lines:
        if chart.bars:
            axes.stairs(line.ys, line.xs, fill=True, alpha=0.6, label=line.name)
        else:
            axes.plot(line.xs, line.ys, marker=".", label=line.name)
    scales = ["log" if each else "linear" for each in (chart.logarithmic_x, chart.logarithmic)]
    axes.set(title=chart.title, xlabel=chart.x, ylabel=chart.y, xscale=scales[0], yscale=scales[1])
    axes.grid(alpha=0.3)
    if len(chart.lines) > 1:
        axes.legend()


def _file_name(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower()).strip("-")
