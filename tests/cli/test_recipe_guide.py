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
    "more", [[], ["--rows", "4000"], ["--rows", "400000"], ["--pattern", "4:8"], ["--pattern", "3:7"]]
)
def test_recipes_says_what_to_start_with_and_what_that_rests_on(more, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["recipes", *more]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert ("Kao et al." in shown) == (not more)  # the catalogue only where nothing is asked
    pattern = more[1] if "--pattern" in more else "2:4"
    measured = sorted(
        (one for one in recipe_guide.MEASUREMENTS if one.pattern == pattern), key=lambda one: one.sort_key
    )
    shares = {f"{one.recipe} {one.gap_closed:.0%} (" for one in recipe_guide.MEASUREMENTS}
    assert {text for text in shares if f" {text}" in shown} == {f"{x.recipe} {x.gap_closed:.0%} (" for x in measured}
    if measured:
        best = max(measured, key=lambda one: (len(one.tasks), one.seeds, one.gap_closed))
        assert f"start with {best.recipe}." in shown and all(f"{task} (" in shown for task in best.tasks)
        assert ("only a guess" in shown) == ("400000" in more)
    else:
        assert f"Nothing has been measured with {pattern}" in shown


def test_the_guide_says_how_to_write_what_it_advises():
    def read(recipe):
        return eval(recipe_guide.in_python(recipe, "1:4"), {"NxMConfig": NxMConfig})

    expected = NxMConfig("admm", "1:4", {"rho": 0.01, "start": "A"}, warmup=0.1, settle=0.3)
    assert read("admm rho=1e-2 start=A settle=0.3 warmup=0.1") == expected
    assert all(read(one.recipe).recipe == one.recipe.split()[0] for one in recipe_guide.MEASUREMENTS)
