"""A chart as a figure of a page, with a table of its numbers."""

from markupsafe import Markup

from nxm_hf.report.chart import Chart
from nxm_hf.report.html import PARTS, html_table
from nxm_hf.report.svg import draw_chart, legend


def figure(chart: Chart) -> Markup:
    """Return a chart with its title, legend, note and numbers.

    Args:
        chart: The chart.
    """
    return PARTS.figure(chart.title, draw_chart(chart), legend(chart), chart.note, _numbers(chart))


def _numbers(chart: Chart) -> Markup:
    """Return a table of all numbers of a chart, in full precision."""
    rows: dict[float, list[str]] = {}
    for column, line in enumerate(chart.lines):
        for x, y in zip(line.xs, line.ys, strict=False):  # bars have one edge more than values
            rows.setdefault(x, [""] * len(chart.lines))[column] = repr(y)
    header = [f"{chart.x}{' (from)' if chart.bars else ''}", *(line.name for line in chart.lines)]
    return html_table(header, [[repr(x), *rows[x]] for x in sorted(rows)])
