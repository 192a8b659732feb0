"""The picture of the README: it shows the numbers of the tables, and is drawn anew when they change."""

import re
from xml.etree import ElementTree

import pytest

from benchmarks import readme_picture
from benchmarks.readme_picture import ACCURACY, PICTURE, Bar, Panel, cells, draw, number, panels

needs_results = pytest.mark.skipif(not ACCURACY.exists(), reason="needs benchmarks/glue/results")


@needs_results
def test_the_committed_picture_is_the_one_that_the_tables_give():
    assert PICTURE.read_text() == draw(panels()), "run python benchmarks/readme_picture.py"


@needs_results
def test_the_numbers_are_those_of_the_pages():
    shown = {panel.title: [bar.text for bar in panel.bars] for panel in panels()}
    assert shown["Accuracy"] == ["0.658", "0.652", "0.589"]
    assert shown["Size"] == ["90.9 MB", "71.0 MB (78%)"] and shown["Time"] == ["279 ms", "186 ms (67%)"]


def test_bars_are_as_long_as_their_values_and_stay_on_the_page():
    root = ElementTree.fromstring(draw([Panel("A", "b < c", (Bar("dense", "d", 4, "4"), Bar("sparse", "s", 1, "1")))]))
    bars = [float(rect.get("width")) for rect in root.findall("{*}rect") if rect.get("class") in ("dense", "sparse")]
    height = float(root.get("viewBox").split()[3])
    assert bars[0] == 4 * bars[1] == readme_picture.LONGEST
    assert all(0 < float(text.get("y")) < height for text in root.findall("{*}text"))
    assert "A: d 4, s 1" in root.get("aria-label") and "b < c" in [text.text for text in root.findall("{*}text")]


def test_both_colour_schemes_set_every_class_that_is_used():
    light, dark = re.split("@media", readme_picture.STYLE)
    for kind in (".page", ".dense", ".sparse", ".lost", ".note"):
        assert kind in light and kind in dark


def test_a_table_without_the_row_is_an_error_that_names_it(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("| a | b | c |\n| a | x | 12.5 ms |\n")
    assert cells(page, "a", "x") == ["a", "x", "12.5 ms"] and number("12.5 ms") == 12.5
    with pytest.raises(ValueError, match=r"no row that begins with '\| a \| z \|'"):
        cells(page, "a", "z")
    with pytest.raises(ValueError, match="'ms' has no number"):
        number("ms")
