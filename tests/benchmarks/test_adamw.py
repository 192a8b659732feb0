"""The table of what a step of AdamW takes."""

from benchmarks.adamw import FORMS, measure
from tests.support.models import make_bert


def test_a_table_has_a_row_for_each_form_and_four_for_each_recipe():
    rows = [row for recipe in (None, "ste settle=0.5") for row in measure(make_bert(), recipe, steps=1)]
    assert [row[:2] for row in rows] == [("none", form) for form in FORMS] + [
        ("none", "torch, fused"),
        ("ste settle=0.5", "torch, fused"),
        ("ste settle=0.5", "nxm_hf, dense moments"),
        ("ste settle=0.5", "nxm_hf"),
    ]
    assert all(float(number) > 0 for row in rows for number in row[2:])
