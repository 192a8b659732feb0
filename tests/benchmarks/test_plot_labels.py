"""Labels of points meet neither each other nor a point nor the frame."""

import pytest

pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.glue.comparison.plot_labels import Label, place


def test_labels_of_crowded_points_meet_nothing_and_stay_in_the_frame():
    figure = Figure(figsize=(5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    points = [(0.9 + 0.02 * (n % 4), 0.5 + 0.01 * n) for n in range(8)] + [(1.0, 1.0), (0.0, 0.0)]
    axes.plot(*zip(*points, strict=True), "o")
    figure.draw_without_rendering()
    labels = [Label(f"a_setting={n}", x, y, f"C{n}") for n, (x, y) in enumerate(points)]
    texts = place(axes, labels, points)
    assert len({text.get_text() for text in texts}) == len(texts) >= 7, "what finds no place is left out"
    renderer = figure.canvas.get_renderer()
    boxes, frame = [text.get_window_extent(renderer) for text in texts], axes.get_window_extent(renderer)
    places = [axes.transData.transform(point) for point in points]
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])
        assert not any(box.contains(*place) for place in places)
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
