"""The guide to recipes: it lists every recipe, and its advice is what was measured."""

import json
import re

import pytest

from nxm_hf import NxMConfig, recipes
from nxm_hf.cli import recipe_guide
from nxm_hf.cli.main import main


def test_the_list_on_file_is_the_catalogue_of_recipes():
    """`nxm recipes` reads the list from a file, since importing the recipes takes torch, and so a second or more."""
    right = {
        name: {
            "summary": recipes.describe(name)[0],
            "settings": recipes.settings(name),
            "paper": recipes.describe(name)[1],
        }
        for name in recipes.names()
    }
    text = json.dumps(right, indent=2, ensure_ascii=False)
    assert recipe_guide.CATALOGUE == right, f"nxm_hf/cli/recipe_catalogue.json should be:\n{text}"


@pytest.mark.parametrize("width", [50, 80, 100, 200])
def test_recipes_lists_the_whole_catalogue_within_the_terminal(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["recipes"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    entries = dict(re.findall(r"^([a-z]\S*) {2,}(\S.*\n(?:  +.*\n)*)", shown, re.MULTILINE))
    assert [name for name in entries if name != "recipe"] == recipes.names()
    for name in recipes.names():
        words = " ".join(entries[name].split())
        sentence, paper = recipes.describe(name)
        assert sentence in words and paper in words
        assert all(f"{key}={value!r}" in words for key, value in recipes.settings(name).items())


@pytest.mark.parametrize(
    "more",
    [[], ["--rows", "4000"], ["--rows", "400000"], ["--pattern", "4:8"], ["--pattern", "1:4"], ["--pattern", "3:7"]],
)
def test_recipes_says_what_to_start_with_and_what_that_rests_on(more, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["recipes", *more]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert ("Kao et al." in shown) == (not more)  # the catalogue only where nothing is asked
    pattern = more[1] if "--pattern" in more else "2:4"
    measured = [one for one in recipe_guide.MEASUREMENTS if one.pattern == pattern]
    shares = {f"{one.recipe} {one.gap_closed:.0%} (" for one in recipe_guide.MEASUREMENTS}
    assert {text for text in shares if f" {text}" in shown} == {f"{x.recipe} {x.gap_closed:.0%} (" for x in measured}
    if measured:
        best = {"2:4": "admm", "4:8": "admm", "1:4": "alps"}[pattern]
        tasks = {task for one in measured if one.recipe == best for task in one.tasks}
        assert f"start with {best}." in shown and all(f"{task} (" in shown for task in tasks)
        assert ("only a guess" in shown) == ("400000" in more)
    else:
        assert f"Nothing has been measured with {pattern}" in shown


def test_recipes_are_ranked_by_their_tasks_and_then_by_the_mean_over_them(monkeypatch):
    """More seeds of one task do not rank a recipe above one that was measured on more tasks."""
    rows = [("a", 0.9, 3, "MRPC"), ("b", 0.4, 1, "MRPC"), ("b", 0.6, 2, "CoLA"), ("c", 0.9, 1, "CoLA")]
    rows += [("c", 0.2, 2, "MRPC"), ("c", 0.9, 1, "MRPC")]
    measured = [recipe_guide.Measurement(name, "3:7", gap, seeds, (task,)) for name, gap, seeds, task in rows]
    monkeypatch.setattr(recipe_guide, "MEASUREMENTS", (*recipe_guide.MEASUREMENTS, *measured))
    ranked = [(one["recipe"], one["seeds"], one["tasks"]) for one in recipe_guide.as_dict("3:7")["measurements"]]
    assert ranked == [
        *[("c", 2, ("MRPC",)), ("c", 1, ("CoLA",)), ("c", 1, ("MRPC",))],
        *[("b", 2, ("CoLA",)), ("b", 1, ("MRPC",)), ("a", 3, ("MRPC",))],
    ]
    words = " ".join(recipe_guide.advice(100, pattern="3:7").split())
    assert "start with c. Measured on MRPC (3668 rows), CoLA (8551 rows) with" in words
    assert "c 20% (2 seeds on MRPC), c 90% (1 seed on CoLA), c 90% (1 seed on MRPC), b 60%" in words


def test_the_guide_says_how_to_write_what_it_advises():
    def read(recipe):
        return eval(recipe_guide.in_python(recipe, "1:4"), {"NxMConfig": NxMConfig})

    expected = NxMConfig("admm", "1:4", {"rho": 0.01, "start": "A"}, warmup=0.1, settle=0.3)
    assert read("admm rho=1e-2 start=A settle=0.3 warmup=0.1") == expected
    assert all(read(one.recipe).recipe == one.recipe.split()[0] for one in recipe_guide.MEASUREMENTS)
