"""Plots of a comparison."""

import math
import re

import pytest

from benchmarks.glue.comparison.page import render
from benchmarks.glue.comparison.plots import _swept_number
from benchmarks.glue.comparison.results import Runs
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


def test_words_have_no_order_and_numbers_of_a_setting_have_that_of_the_setting():
    def runs(recipe, **config):
        settings = config.pop("settings", {})
        record = {"recipe": recipe, "config": {"settings": settings, "warmup": 0.0, "settle": 0.0, **config}}
        return Runs("demo", recipe, {0: record})

    assert _swept_number(runs("sr-ste", settings={"decay": 1e-3}), "decay") == 1e-3
    assert _swept_number(runs("sr-ste"), "decay") == 2e-4, "the default of the recipe"
    assert _swept_number(runs("admm", settle=0.5), "settle") == 0.5
    for words in (
        (runs("admm"), "rho"),
        (runs("asp", settings={"scores": "alps"}), "scores"),
        (runs("asp", pattern="4:8"), "pattern"),
    ):
        assert math.isnan(_swept_number(*words))
