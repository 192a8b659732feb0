"""One chart: whether there is a change to see, and where its marks stand."""

import re

from nxm_hf.report.chart import Chart, Line, Mark
from nxm_hf.report.svg import HEIGHT, draw_chart


def make_chart(*values, **changes) -> Chart:
    lines = tuple(Line(f"run {number}", (0, 10, 20), ys) for number, ys in enumerate(values))
    return Chart("curves", "A chart", "step", "loss", lines, **changes)


def test_a_chart_is_constant_only_if_each_of_its_curves_is():
    assert make_chart((1, 1, 1)).is_constant and make_chart((1, 1, 1), (2, 2, 2)).is_constant
    assert not make_chart((1, 1, 1), (2, 2, 3)).is_constant
    assert not make_chart((1, 1), bars=True).is_constant


def test_marks_stand_at_their_steps_and_their_labels_never_meet_the_curves():
    chart = make_chart((1, 3, 2), marks=(Mark(10, "a"), Mark(11, "<b>", 1), Mark(20, "c")))
    text = draw_chart(chart)
    places = [float(x) for x in re.findall(r'class="mark[ c\d]*" d="M([\d.]+)', text)]
    points = [tuple(map(float, point.split(","))) for point in re.search(r'points="(.*?)"', text)[1].split()]
    assert places[0] == points[1][0] and places[2] == points[2][0] and places[0] < places[1] < places[2]
    labels = [float(y) for y in re.findall(r'class="marked.*?y="([\d.]+)"', text)]
    assert len(set(labels)) == 3 and max(labels) < min(y for _, y in points)
    assert "&lt;b&gt;" in text and 'class="mark c1"' in text and f'viewBox="0 0 420 {HEIGHT + 42}"' in text
    assert "a at 10" in text
