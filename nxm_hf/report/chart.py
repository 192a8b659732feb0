"""Data of one chart, independent of the output format (SVG or PNG)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """One curve of a chart. In a bar chart `xs` are the edges of the bars, one more than `ys`."""

    name: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]


@dataclass(frozen=True)
class Mark:
    """A vertical line in a chart, where something begins.

    Args:
        x: Where it stands.
        label: The name of what begins there, such as a phase.
        line: The number of the curve that it belongs to, whose colour it has; None if it belongs to all.
    """

    x: float
    label: str
    line: int | None = None


@dataclass(frozen=True)
class Chart:
    """One figure: curves, or bars, over a common axis.

    Args:
        section: The section of the page that shows it, "curves" or "weights".
        title: Its title.
        x: The label of the x axis.
        y: The label of the y axis.
        lines: The curves, or one outline of bars each.
        bars: Whether to draw bars.
        logarithmic: Whether the y axis is logarithmic.
        note: A text below the figure.
        logarithmic_x: Whether the x axis is logarithmic.
        marks: Vertical lines.
    """

    section: str
    title: str
    x: str
    y: str
    lines: tuple[Line, ...]
    bars: bool = False
    logarithmic: bool = False
    note: str = ""
    logarithmic_x: bool = False
    marks: tuple[Mark, ...] = ()

    @property
    def is_constant(self) -> bool:
        """Return whether there is no change to see: each curve has one value all along."""
        return not self.bars and all(len(set(line.ys)) <= 1 for line in self.lines)
