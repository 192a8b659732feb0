"""Charts and masks as inline SVG, coloured by the style sheet of the page."""

from collections.abc import Sequence
from html import escape
from itertools import groupby

from markupsafe import Markup

from nxm_hf.report.axes import Axis, fit_axis, tick_label
from nxm_hf.report.chart import Chart, Line, Mark

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 30, 40  # margins around the plot
COLOURS = 6  # classes c0 ... c5 of the style sheet; further curves are dashed
DASHES = ("", "6 3", "2 3")
ROW = 14  # the height of the label of a mark, above the plot
MAX_DOTS = 40  # a curve with more points is drawn without dots


def draw_chart(chart: Chart) -> Markup:
    """Return a chart as one `<svg>` element.

    Args:
        chart: The chart.
    """
    x, y = _axes(chart)
    shapes = [_bars(line, n, x, y) if chart.bars else _curve(line, n, x, y) for n, line in enumerate(chart.lines)]
    label = f"{chart.title}: {chart.y} over {chart.x}, of {', '.join(line.name for line in chart.lines)}"
    marks = [_mark(mark, row, x, y) for row, mark in enumerate(chart.marks)]
    if chart.marks:
        label += "; " + ", ".join(f"{mark.label} at {tick_label(mark.x)}" for mark in chart.marks)
    height = HEIGHT + ROW * len(chart.marks)
    return Markup("".join([_open_svg(WIDTH, height, label), *_grid(chart, x, y), *shapes, *marks, "</svg>"]))


def legend(chart: Chart) -> list[tuple[Markup, str]]:
    """Return a sample of each curve with its name, or an empty list for a single curve.

    Args:
        chart: The chart.
    """
    if len(chart.lines) < 2:
        return []
    sample = '<svg viewBox="0 0 24 10" aria-hidden="true">{}</svg>'
    return [(Markup(sample.format(_sample(number, chart))), line.name) for number, line in enumerate(chart.lines)]


def draw_mask(rows: Sequence[str], title: str, group: int = 4) -> Markup:
    """Return a mask as squares, with faint lines between groups of columns.

    Args:
        rows: The rows of the mask, as texts of "0" and "1".
        title: A description for readers who do not see it.
        group: The number of columns of a group.
    """
    width, height = len(rows[0]), len(rows)
    kept = "".join(f"M{x} {y}h{length}v1h-{length}z" for y, row in enumerate(rows) for x, length in _runs_of_ones(row))
    lines = "".join(f"M{x} 0v{height}" for x in range(group, width, group))
    return Markup(
        f'{_open_svg(width, height, title, "mask")}<rect class="paper" width="{width}" height="{height}"/>'
        f'<path class="kept" d="{kept}"/><path class="groups" d="{lines}"/></svg>'
    )


def sparkline(values: Sequence[float], title: str) -> Markup:
    """Return a curve of the size of a word, whose y axis starts at zero.

    Args:
        values: Its values, evenly spaced.
        title: A description for readers who do not see it.
    """
    x, y = fit_axis(range(max(len(values), 2)), 1, 79), Axis(0, max(*values, 1e-30), 19, 2)
    points = " ".join(f"{x.position(n)},{y.position(value)}" for n, value in enumerate(values))
    return Markup(f'{_open_svg(80, 20, title, "spark")}<polyline class="line c0" points="{points}"/></svg>')


def _open_svg(width: int, height: int, title: str, css_class: str = "chart") -> str:
    return (
        f'<svg class="{css_class}" role="img" viewBox="0 0 {width} {height}" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>"
    )


def _axes(chart: Chart) -> tuple[Axis, Axis]:
    xs = [x for line in chart.lines for x in line.xs]
    ys = [y for line in chart.lines for y in line.ys]
    left, right = LEFT, WIDTH - RIGHT
    xs += [mark.x for mark in chart.marks]
    x_axis = (
        Axis(min(xs), max(xs), left, right)
        if chart.bars
        else fit_axis(xs, left, right, logarithmic=chart.logarithmic_x)
    )
    marked = ROW * len(chart.marks)
    y_axis = fit_axis(ys, HEIGHT - BOTTOM + marked, TOP + marked, from_zero=chart.bars, logarithmic=chart.logarithmic)
    return x_axis, y_axis


def _grid(chart: Chart, x: Axis, y: Axis) -> list[str]:
    """Return the axes with their labels, ticks and grid lines."""
    bottom, center = f"{y.begin:g}", (LEFT + WIDTH - RIGHT) / 2
    y_label = f"{escape(chart.y)}{' (log)' if chart.logarithmic else ''}"
    parts = [
        f'<text class="axis" x="4" y="14">{y_label}</text>',
        f'<text class="axis" text-anchor="middle" x="{center}" y="{y.begin + BOTTOM - 6:g}">{escape(chart.x)}</text>',
    ]
    for tick in y.ticks:
        at, label = y.position(tick), tick_label(tick, 0 if y.logarithmic else y.step)
        parts.append(f'<path class="grid" d="M{LEFT} {at}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{LEFT - 6}" y="{at + 4}">{label}</text>')
    for tick in x.ticks:
        if tick == int(tick):  # steps and percentages are whole numbers
            at = x.position(tick)
            parts.append(f'<path class="grid" d="M{at} {bottom}v4"/>')
            parts.append(
                f'<text class="tick" text-anchor="middle" x="{at}" y="{y.begin + 17:g}">{tick_label(tick)}</text>'
            )
    return [*parts, f'<path class="base" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>']


def _curve(line: Line, number: int, x: Axis, y: Axis) -> str:
    points = [(x.position(a), y.position(b)) for a, b in zip(line.xs, line.ys, strict=True)]
    curve = f'<polyline {_stroke(number)} points="{" ".join(f"{a},{b}" for a, b in points)}"/>'
    if len(points) > MAX_DOTS:
        return curve
    return curve + "".join(f'<circle class="dot c{number % COLOURS}" cx="{a}" cy="{b}" r="2.5"/>' for a, b in points)


def _mark(mark: Mark, row: int, x: Axis, y: Axis) -> str:
    """Return a vertical line with its label above the plot, each on a row of its own, on the side with more room."""
    at, colour = x.position(mark.x), "" if mark.line is None else f" c{mark.line % COLOURS}"
    anchor, dx = ("start", 4) if at < (LEFT + WIDTH - RIGHT) / 2 else ("end", -4)
    return (
        f'<path class="mark{colour}" d="M{at} {TOP - 8 + ROW * row}V{y.begin:g}"/>'
        f'<text class="marked{colour}" text-anchor="{anchor}" x="{at + dx:.5g}" y="{TOP + 2 + ROW * row}">'
        f"{escape(mark.label)}</text>"
    )


def _bars(line: Line, number: int, x: Axis, y: Axis) -> str:
    steps = "".join(f"V{y.position(b)}H{x.position(right)}" for b, right in zip(line.ys, line.xs[1:], strict=True))
    outline = f"M{x.position(line.xs[0])} {y.position(0)}{steps}V{y.position(0)}"
    return f'<path class="bars c{number % COLOURS}" d="{outline}z"/>'


def _stroke(number: int) -> str:
    """Return the attributes that distinguish a curve from the others."""
    dash = DASHES[number // COLOURS % len(DASHES)]
    return f'class="line c{number % COLOURS}"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _sample(number: int, chart: Chart) -> str:
    if chart.bars:
        return f'<path class="bars c{number % COLOURS}" d="M2 1h20v8h-20z"/>'
    return f'<path {_stroke(number)} d="M1 5h22"/>'


def _runs_of_ones(row: str) -> list[tuple[int, int]]:
    """Return where runs of ones begin, and their lengths."""
    runs, position = [], 0
    for bit, equal in groupby(row):
        length = len(list(equal))
        if bit == "1":
            runs.append((position, length))
        position += length
    return runs
