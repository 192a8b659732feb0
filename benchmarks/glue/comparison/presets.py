"""Presets: files that say which models, tasks, recipes, seeds and grids a comparison has."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .options import BUDGETS, option_value
from .recipe_text import read_recipe

FOLDER = Path(__file__).resolve().parents[1] / "presets"
PRESETS = tuple(sorted(file.stem for file in FOLDER.glob("*.json")))


@dataclass(frozen=True)
class Preset:
    """A file of the folder `presets`.

    Args:
        about: A line for `--help`.
        extends: The preset whose grids come first.
        script: "language_model" of benchmarks/language_model.py, or none: the preset is then run as trials.
        models: The models; none leaves them to the command line, like all that follows.
        tasks: The tasks.
        recipes: The recipes.
        seeds: The seeds.
        grids: Values by key, each for some tasks and recipes or for all; a later one replaces an earlier one.
        options: Options of the script.
    """

    about: str
    extends: str | None = None
    script: str | None = None
    models: Sequence[str] = ()
    tasks: Sequence[str] = ()
    recipes: Sequence[str] = ()
    seeds: Sequence[int] = ()
    grids: Sequence[Mapping[str, Any]] = ()
    options: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def grid(self, task: str, recipe: str, options: Sequence[str]) -> dict[str, Sequence[str]]:
        """Return the values of each key, without the keys that the command line sets.

        Args:
            task: The task.
            recipe: The recipe, with its settings.
            options: The options that all trials share.
        """
        found = dict(read_preset(self.extends).grid(task, recipe, options)) if self.extends else {}
        name = str(read_recipe(recipe).recipe)
        for part in self.grids:
            if task in part.get("tasks", [task]) and name in part.get("recipes", [name]):
                found.update(part["values"])
        has_budget = any(option_value(options, budget) for budget in BUDGETS)
        return {
            key: values
            for key, values in found.items()
            if not option_value(options, key) and not (has_budget and key in BUDGETS)
        }


def read_preset(name: str) -> Preset:
    """Return a preset.

    Args:
        name: One of `PRESETS`.
    """
    return Preset(**json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))


def describe_presets() -> str:
    """Return a line for each preset, for `--help`."""
    return "; ".join(f"{name}: {read_preset(name).about}" for name in PRESETS)
