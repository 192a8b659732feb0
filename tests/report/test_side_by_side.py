"""Tables that show several runs side by side."""

from nxm_hf.report.side_by_side import quantities, rows_by_name
from tests.support.html_reader import Reader


def test_quantities_that_differ_are_bold_and_markup_is_text():
    text = quantities(["a", "b"], [{"same": "1", "other": "<i>"}, {"same": "1", "other": "2", "more": "3"}])
    assert Reader(text).tables[""] == [["", "a", "b"], ["same", "1", "1"], ["other", "<i>", "2"], ["more", "-", "3"]]
    assert text.count("<b>") == 4 and "<i>" not in text and "Bold" in text
    assert "&lt;i&gt;" in quantities(["a"], [{"x": "<i>"}])
    assert "Bold" not in quantities(["a"], [{"x": "1"}]) and quantities(["a"], [{}]) == ""


def test_rows_of_several_runs_are_joined_by_name():
    runs = [{"x": (("query",), ("1", "2"))}, {"x": (("query",), ("3", "4")), "y": (("key",), ("5", "6"))}]
    head, *rows = Reader(rows_by_name(["a", "b"], ("layer", "role"), ("p", "q"), runs)).tables[""]
    assert head == ["layer", "role", "a: p", "a: q", "b: p", "b: q"]
    assert rows == [["x", "query", "1", "2", "3", "4"], ["y", "key", "-", "-", "5", "6"]]
    assert Reader(rows_by_name(["a"], ("layer", "role"), ("p", ""), runs[:1])).tables[""][0][2:] == ["p", ""]
    assert rows_by_name(["a"], ("layer",), ("p",), [{}]) == ""
