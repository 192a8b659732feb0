"""Labels of points in a plot, placed where they meet neither each other nor a point nor the frame."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

SIZE = 7  # of the font, in points of print
_DISTANCES = (5, 12, 20, 30, 42, 56)  # from the point to its label
_DIRECTIONS = ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))
_SIDES = {1: "left", 0: "center", -1: "right"}
_LEVELS = {1: "bottom", 0: "center", -1: "top"}


@dataclass(frozen=True)
class Label:
    """A text beside a point.

    Args:
        text: The text.
        x: Where the point stands.
        y: Its height.
        color: The colour of the point.
    """

    text: str
    x: float
    y: float
    color: str


def place(axes: Any, labels: Sequence[Label], points: Sequence[tuple[float, float]]) -> list[Any]:
    """Write labels beside their points, each with a thin line if it had to go further away.

    Args:
        axes: The axes, with all else drawn and with their final limits.
        labels: The labels.
        points: All points of the plot, which no label may cover.

    Returns:
        The texts. One that finds no free place at all is left out.
    """
    renderer = axes.figure.canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    taken = [_around(*axes.transData.transform(point)) for point in points]
    written = []
    for label in sorted(labels, key=lambda label: label.y):
        for offset in _offsets():
            text = _write(axes, label, offset)
            box = text.get_window_extent(renderer).padded(1)
            if _is_inside(box, frame) and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                written.append(text)
                break
            text.remove()
    return written


def _offsets() -> Iterator[tuple[int, int]]:
    """Yield offsets from a point, the nearest first."""
    for distance in _DISTANCES:
        for right, up in _DIRECTIONS:
            yield right * distance, up * distance


def _write(axes: Any, label: Label, offset: tuple[int, int]) -> Any:
    from matplotlib.patheffects import withStroke

    right, up = ((part > 0) - (part < 0) for part in offset)
    is_far = max(map(abs, offset)) > _DISTANCES[1]
    return axes.annotate(
        label.text,
        (label.x, label.y),
        offset,
        textcoords="offset points",
        fontsize=SIZE,
        color=label.color,
        ha=_SIDES[right],
        va=_LEVELS[up],
        path_effects=[withStroke(linewidth=2, foreground="white")],  # readable on a line
        arrowprops={"arrowstyle": "-", "color": label.color, "linewidth": 0.5, "alpha": 0.6} if is_far else None,
    )


def _around(x: float, y: float, radius: float = 4.0) -> Any:
    from matplotlib.transforms import Bbox

    return Bbox.from_extents(x - radius, y - radius, x + radius, y + radius)


def _is_inside(box: Any, frame: Any) -> bool:
    return box.x0 >= frame.x0 and box.x1 <= frame.x1 and box.y0 >= frame.y0 and box.y1 <= frame.y1
