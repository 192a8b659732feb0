"""The catalogue of recipes: by name, with their settings, defaults and references."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from nxm_hf.methods import Method
from nxm_hf.patterns import Pattern

Recipe = Callable[..., Method]


class Recipes:
    """Recipes by name; names are spelled with hyphens, and underscores are accepted."""

    def __init__(self, *recipes: Recipe):
        self._recipes = {recipe.__name__.replace("_", "-"): recipe for recipe in recipes}

    def names(self) -> list[str]:
        """The names, in the order of the catalogue."""
        return list(self._recipes)

    def find(self, name: str) -> tuple[str, Recipe]:
        """The spelling of the catalogue, and the recipe."""
        spelled = str(name).strip().lower().replace("_", "-")
        if spelled not in self._recipes:
            near = difflib.get_close_matches(spelled, self._recipes, n=1, cutoff=0.5)
            hint = f" Write {near[0]!r}." if near else ""
            raise ValueError(f"There is no recipe {name!r}. The catalogue has: {', '.join(self._recipes)}.{hint}")
        return spelled, self._recipes[spelled]

    def settings(self, name: str) -> dict[str, Any]:
        """The settings of a recipe and their defaults."""
        parameters = list(inspect.signature(self.find(name)[1]).parameters.values())
        return {parameter.name: parameter.default for parameter in parameters[1:]}

    def settle(self, name: str) -> float:
        """The fraction of training that a recipe settles for where the config sets none."""
        return getattr(self.find(name)[1], "settle", 0.0)

    def make(self, name: str, pattern: Pattern, settings: dict[str, Any]) -> Method:
        """The method of a recipe with these settings."""
        name, recipe = self.find(name)
        known = self.settings(name)
        if wrong := sorted(set(settings) - set(known)):
            has = f"has the settings {', '.join(known)}" if known else "has no settings"
            raise ValueError(f"The recipe {name!r} {has}; got {', '.join(map(repr, wrong))}.")
        return recipe(pattern, **settings)

    def describe(self, name: str) -> tuple[str, str]:
        """The first sentence of a recipe's data sheet, and its reference."""
        lines = inspect.getdoc(self.find(name)[1]).splitlines()
        reference = next(line for line in lines if line.startswith("Reference: "))
        return lines[0], reference.removeprefix("Reference: ")
