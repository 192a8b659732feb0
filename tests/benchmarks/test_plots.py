"""Plots of a comparison."""

import re

import pytest

from benchmarks.glue.comparison.page import render
from tests.support.comparison_trials import (
    write_comparison,
)


def test_plots_are_drawn_and_the_page_shows_them(page):
    pytest.importorskip("matplotlib")
    _, text, folder = page
    pictures = re.findall(r"!\[\w+\]\((.+)\)", text)
    assert {"recipes.png", "flops.png", "similarity.png"} <= set(pictures)
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


def test_without_matplotlib_the_page_says_what_to_install(model, tmp_path, without_plots):
    write_comparison(tmp_path, model, seeds=(0,))
    text = render(tmp_path)
    assert "pip install nxm-hf[report]" in text and not list(tmp_path.glob("*.png"))
