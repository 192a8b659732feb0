"""Charts as PNG files, if matplotlib is installed."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nxm_hf.report.chart import Chart

_SOFTWARE = "nxm_hf report"  # in each picture, by which a later report knows it
_HEAD = 4096  # bytes of a PNG in which that stands


def write_pngs(charts: Sequence[Chart], folder: Path) -> list[Path]:
    """Draw each chart into `folder/report/`, and remove what an earlier report left there; other pictures stay.

    Args:
        charts: The charts.
        folder: The directory of the report.

    Returns:
        The written files; none without matplotlib.
    """
    pictures = folder / "report"
    for old in pictures.glob("*.png"):
        if _SOFTWARE.encode() in old.read_bytes()[:_HEAD]:
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
        figure.savefig(written[-1], metadata={"Software": _SOFTWARE})
    return written


def _draw(chart: Chart, axes: Any) -> None:  # matplotlib.axes.Axes, which may not be installed
    for line in chart.lines:
        if chart.bars:
            axes.stairs(line.ys, line.xs, fill=True, alpha=0.6, label=line.name)
        else:
            axes.plot(line.xs, line.ys, marker=".", label=line.name)
    scales = ["log" if each else "linear" for each in (chart.logarithmic_x, chart.logarithmic)]
    axes.set(title=chart.title, xlabel=chart.x, ylabel=chart.y, xscale=scales[0], yscale=scales[1])
    for row, mark in enumerate(chart.marks):
        colour = "tab:gray" if mark.line is None else f"C{mark.line}"
        axes.axvline(mark.x, color=colour, linestyle="--", linewidth=1)
        side = "left" if mark.x < sum(axes.get_xlim()) / 2 else "right"
        place = {"xytext": (3 if side == "left" else -3, -8 - 9 * row), "textcoords": "offset points"}
        axes.annotate(mark.label, (mark.x, 1), xycoords=axes.get_xaxis_transform(), fontsize=7, ha=side, **place)
    axes.grid(alpha=0.3)
    if len(chart.lines) > 1:
        axes.legend()


def _file_name(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower()).strip("-")
