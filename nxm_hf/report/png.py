"""Charts as PNG files, if matplotlib is installed."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nxm_hf.report.chart import Chart
from nxm_hf.text import printable

LABEL = 60  # characters of a title or a label, which have to fit into the picture
_SOFTWARE = "nxm_hf report"  # written into each picture, so that a later report can recognize it
_HEAD = 4096  # the first bytes of a PNG, which hold it


def write_pngs(charts: Sequence[Chart], folder: Path) -> list[Path]:
    """Draw each chart into `folder/report/`, and remove the charts of an earlier report. Other pictures stay.

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
            axes.stairs(line.ys, line.xs, fill=True, alpha=0.6, label=_label(line.name))
        else:
            axes.plot(line.xs, line.ys, marker=".", label=_label(line.name))
    scales = ["log" if each else "linear" for each in (chart.logarithmic_x, chart.logarithmic)]
    title, x, y = map(_label, (chart.title, chart.x, chart.y))
    axes.set(title=title, xlabel=x, ylabel=y, xscale=scales[0], yscale=scales[1])
    for row, mark in enumerate(chart.marks):
        colour = "tab:gray" if mark.line is None else f"C{mark.line}"
        axes.axvline(mark.x, color=colour, linestyle="--", linewidth=1)
        side = "left" if mark.x < sum(axes.get_xlim()) / 2 else "right"
        place: dict[str, Any] = {"xytext": (3 if side == "left" else -3, -8 - 9 * row), "textcoords": "offset points"}
        axes.annotate(
            _label(mark.label), (mark.x, 1), xycoords=axes.get_xaxis_transform(), fontsize=7, ha=side, **place
        )
    axes.grid(alpha=0.3)
    if len(chart.lines) > 1:
        axes.legend()


def _label(text: str) -> str:
    """Return a text that matplotlib draws as it is: in one short line, and not as mathematics between dollar signs."""
    line = printable(" ".join(text.split()))
    return f"{line[:LABEL]}{'...' if len(line) > LABEL else ''}".replace("$", r"\$")


def _file_name(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower()).strip("-")[:100] or "chart"
