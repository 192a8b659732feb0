"""The recipes and settings that laws are tested over, and pairs of settings in place of every combination."""

from collections.abc import Iterable, Iterator
from itertools import combinations, product
from typing import Any

import pytest

from nxm_hf import recipes

RECIPES = recipes.names()
SPARSE = [name for name in RECIPES if name != "dense"]
# One recipe for each kind of state: a fixed mask, a mask solved anew, a dense copy with a dual, weights that grow.
FEW = ["asp", "sr-ste", "admm", "rigl"]
OTHERS = [name for name in RECIPES if name not in FEW]
WINDOW = {"warmup": 0.25, "settle": 0.25}  # of 12 steps: 3 dense, 6 of the recipe, 3 with the mask frozen

EACH_RECIPE = pytest.mark.parametrize("recipe", RECIPES)
EACH_SPARSE_RECIPE = pytest.mark.parametrize("recipe", SPARSE)
BOTH_WINDOWS = [{}, WINDOW]
WINDOWS = pytest.mark.parametrize("window", BOTH_WINDOWS, ids=["whole", "warmup+settle"])


def pairs(**axes: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrize a test such that every two values of different axes meet at least once.

    A law over four axes is tested so at a fraction of the cost of all combinations: a fault that needs three particular
    values at once could pass, and any that needs one or two is seen. The combinations are the same in every run.

    Args:
        axes: the values of each parameter, by its name.
    """
    rows = [tuple(row) for row in _covering([list(axis) for axis in axes.values()])]
    return pytest.mark.parametrize(list(axes), rows, ids=["-".join(map(_label, row)) for row in rows])


def _label(value: Any) -> str:
    return "+".join(value) or "whole" if isinstance(value, dict) else str(value)


def _covering(axes: list[list[Any]]) -> Iterator[list[Any]]:
    """Choose rows greedily: each is the combination with the most pairs of values that no row before it has."""
    rows = list(product(*(range(len(axis)) for axis in axes)))
    pairs_of = {row: set(combinations(enumerate(row), 2)) for row in rows}
    missing = set().union(*pairs_of.values())
    while missing:
        best = max(rows, key=lambda row: len(missing & pairs_of[row]))
        missing -= pairs_of[best]
        yield [axis[index] for axis, index in zip(axes, best, strict=True)]
