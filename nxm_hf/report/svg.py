"""Drawing: charts and masks as inline SVG, coloured by the page's style sheet."""

from collections.abc import Sequence
from html import escape

from nxm_hf.report.axes import Axis, fitted, number
from nxm_hf.report.charts import Chart, Line

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 30, 40
COLOURS = 6  # classes c0 ... c5 of the style sheet; dashes tell further runs apart
DASHES = ("", "6 3", "2 3")
FEW = 40  # points, up to which each gets a dot


def draw(chart: Chart) -> str:
    """A chart as one `<svg>`."""
    x, y = _axes(chart)
    shapes = [_bars(line, n, x, y) if chart.bars else _curve(line, n, x, y) for n, line in enumerate(chart.lines)]
    label = f"{chart.title}: {chart.y} over {chart.x}, of {', '.join(line.name for line in chart.lines)}"
    return "".join([_open(WIDTH, HEIGHT, label), *_grid(chart, x, y), *shapes, "</svg>"])


def legend(chart: Chart) -> str:
    """Which colour is which; nothing where there is only one."""
    if len(chart.lines) < 2:
        return ""
    keys = [f'<li><svg viewBox="0 0 24 10" aria-hidden="true">{_key(n, chart)}</svg>{escape(line.name)}</li>'
            for n, line in enumerate(chart.lines)]  # fmt: skip
    return f'<ul class="legend">{"".join(keys)}</ul>'


def picture(rows: Sequence[str], title: str, group: int = 4) -> str:
    """A mask as squares, with faint lines between groups of columns."""
    wide, tall = len(rows[0]), len(rows)
    kept = "".join(f"M{x} {y}h{length}v1h-{length}z" for y, row in enumerate(rows) for x, length in _stretches(row))
    lines = "".join(f"M{x} 0v{tall}" for x in range(group, wide, group))
    return (
        f'{_open(wide, tall, title, "mask")}<rect class="paper" width="{wide}" height="{tall}"/>'
        f'<path class="kept" d="{kept}"/><path class="groups" d="{lines}"/></svg>'
    )


def spark(values: Sequence[float], title: str) -> str:
    """A curve as small as a word, from zero on."""
    x, y = fitted(range(max(len(values), 2)), 1, 79), Axis(0, max(*values, 1e-30), 19, 2)
    points = " ".join(f"{x.at(n)},{y.at(value)}" for n, value in enumerate(values))
    return f'{_open(80, 20, title, "spark")}<polyline class="line c0" points="{points}"/></svg>'


def _open(width: int, height: int, title: str, kind: str = "chart") -> str:
    return (
        f'<svg class="{kind}" role="img" viewBox="0 0 {width} {height}" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>"
    )


def _axes(chart: Chart) -> tuple[Axis, Axis]:
    xs = [x for line in chart.lines for x in line.xs]
    ys = [y for line in chart.lines for y in line.ys]
    if chart.bars:
        across = Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    else:
        across = fitted(xs, LEFT, WIDTH - RIGHT)
    up = fitted(ys, HEIGHT - BOTTOM, TOP, zero=chart.bars, logarithmic=chart.logarithmic)
    return across, up


def _grid(chart: Chart, x: Axis, y: Axis) -> list[str]:
    """Lines and numbers at the ticks, and what the axes are of."""
    bottom = HEIGHT - BOTTOM
    parts = [f'<text class="axis" x="4" y="14">{escape(chart.y)}{" (log)" if chart.logarithmic else ""}</text>']
    parts.append(f'<text class="axis" text-anchor="middle" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}">'
                 f"{escape(chart.x)}</text>")  # fmt: skip
    for tick in y.ticks:
        at, said = y.at(tick), number(tick, 0 if y.logarithmic else y.step)
        parts.append(f'<path class="grid" d="M{LEFT} {at}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{LEFT - 6}" y="{at + 4}">{said}</text>')
    for tick in (tick for tick in x.ticks if tick == int(tick)):
        at = x.at(tick)
        parts.append(f'<path class="grid" d="M{at} {bottom}v4"/>')
        parts.append(f'<text class="tick" text-anchor="middle" x="{at}" y="{bottom + 17}">{number(tick)}</text>')
    return [*parts, f'<path class="base" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>']


def _curve(line: Line, order: int, x: Axis, y: Axis) -> str:
    points = [(x.at(a), y.at(b)) for a, b in zip(line.xs, line.ys, strict=True)]
    drawn = f'<polyline {_pen(order)} points="{" ".join(f"{a},{b}" for a, b in points)}"/>'
    if len(points) > FEW:
        return drawn
    return drawn + "".join(f'<circle class="dot c{order % COLOURS}" cx="{a}" cy="{b}" r="2.5"/>' for a, b in points)


def _bars(line: Line, order: int, x: Axis, y: Axis) -> str:
    steps = "".join(f"V{y.at(b)}H{x.at(right)}" for b, right in zip(line.ys, line.xs[1:], strict=True))
    outline = f"M{x.at(line.xs[0])} {y.at(0)}{steps}V{y.at(0)}"
    return f'<path class="bars c{order % COLOURS}" d="{outline}z"/>'


def _pen(order: int) -> str:
    dash = DASHES[order // COLOURS % len(DASHES)]
    return f'class="line c{order % COLOURS}"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _key(order: int, chart: Chart) -> str:
    if chart.bars:
        return f'<path class="bars c{order % COLOURS}" d="M2 1h20v8h-20z"/>'
    return f'<path {_pen(order)} d="M1 5h22"/>'


def _stretches(row: str) -> list[tuple[int, int]]:
    """Where the runs of ones begin, and how long they are."""
    found, begin = [], None
    for place, bit in enumerate(f"{row}0"):
        if bit == "1" and begin is None:
            begin = place
        elif bit == "0" and begin is not None:
            found.append((begin, place - begin))
            begin = None
    return found
