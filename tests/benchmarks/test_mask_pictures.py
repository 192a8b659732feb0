"""The pictures of masks: patterns hold, and recipes zero what they should and when."""

import re
from xml.etree import ElementTree

import torch

from benchmarks import mask_pictures
from benchmarks.mask_pictures import (
    IMAGES,
    LEVELS,
    PATTERNS,
    RECIPES,
    STEPS,
    draw_patterns,
    draw_recipes,
    levels,
    mask_of,
    weights_over_time,
)
from nxm_hf import recipes
from nxm_hf.patterns import parse

CONFIGS = dict(RECIPES)


def zeros_of_groups(weights: list[list[int]], step: int) -> list[int]:
    """Return how many weights of each group of four are zero after a step."""
    column = [row[step] for row in weights]
    return [column[start : start + 4].count(0) for start in range(0, len(column), 4)]


def test_the_committed_picture_of_patterns_is_the_one_that_the_library_gives():
    assert (IMAGES / "masks-of-patterns.svg").read_text() == draw_patterns(), "run python benchmarks/mask_pictures.py"


def test_masks_of_patterns_hold_their_pattern_and_keep_its_density():
    for pattern in PATTERNS:
        mask = torch.tensor(mask_of(pattern)).float()
        assert torch.equal(parse(pattern).project(mask + 0.0), mask) and mask.mean() == parse(pattern).density


def test_the_picture_over_time_has_every_recipe():
    assert {config.recipe for config in CONFIGS.values()} == {*recipes.names()} - {"dense"}
    shown = (IMAGES / "masks-over-time.svg").read_text()
    texts = [text.text for text in ElementTree.fromstring(shown).findall("{*}text")]
    assert texts == [*CONFIGS, "start", "end of training"]


def test_weights_are_zero_when_the_recipe_says_so():
    pruned, dense = [2] * 4, [0] * 4
    asp, late = weights_over_time(CONFIGS["asp"]), weights_over_time(CONFIGS["alps"])
    assert len(asp) == mask_pictures.SHOWN and len(asp[0]) == STEPS
    assert all(zeros_of_groups(asp, step) == pruned for step in range(STEPS))
    assert zeros_of_groups(late, 0) == dense and zeros_of_groups(late, STEPS // 2 - 5) == dense
    assert all(zeros_of_groups(late, step) == pruned for step in range(STEPS // 2 + 1, STEPS))


def test_only_zeros_have_level_zero_and_the_largest_have_the_last():
    assert levels(torch.tensor([[0.0, 1e-9, 0.6, 1.0, 50.0]])) == [[0, 1, 1, 1, LEVELS]]
    assert levels(torch.tensor([[0.0] + [float(n) for n in range(1, 11)]]))[0][:3] == [0, 1, 1]


def test_a_picture_draws_each_run_of_equal_cells_once():
    root = ElementTree.fromstring(draw_recipes([("a < b", [[0, 1, 1, 2], [0, 0, 0, 0]])]))
    paths = {path.get("class"): path.get("d") for path in root.findall("{*}path")}
    wide = mask_pictures.CELL
    assert set(paths) == {"kept k1", "kept k2"} and all(d.count("M") == 1 for d in paths.values())
    assert f"h{2 * wide:g}v" in paths["kept k1"] and f"M{mask_pictures.LEFT + 3 * wide:g} " in paths["kept k2"]
    assert "a < b" in [text.text for text in root.findall("{*}text")]


def test_both_colour_schemes_of_the_pictures_set_every_class():
    light, dark = re.split("@media", mask_pictures.STYLE)
    for kind in (".page", ".paper", ".kept", ".line", ".note"):
        assert kind in light and kind in dark
