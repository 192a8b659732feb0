"""Recipes as they are written on the command line: `"admm settle=0.3 rho=0.01 teacher=dense weight=0.9"`."""

import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from nxm_hf import DistillationConfig, NxMConfig, recipes

from .options import SET_BY_TRIAL, known_options, suggestion

SMALL = "small"  # not a recipe of nxm_hf, but a dense baseline that is written like one
DISTILLATION_KEYS = tuple(field.name for field in fields(DistillationConfig))


def parse_value(text: str) -> Any:
    """Return a value parsed as JSON, or the text itself if it is not JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _split(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name of a recipe, and the values that follow it by key."""
    if not text.strip():
        raise ValueError("A recipe is empty; write its name, such as 'admm settle=0.3'.")
    name, *changes = text.split()
    values = {}
    for change in changes:
        key, _, value = change.partition("=")
        if not key or not value:
            raise ValueError(f"{change!r} of the recipe {text!r} sets nothing; write a key and a value: 'settle=0.3'.")
        values[key] = parse_value(value)
    return name, values


def is_small(recipe: str) -> bool:
    """Return whether a recipe is the baseline `small`."""
    return recipe.split()[0] == SMALL


def read_recipe(text: str) -> NxMConfig:
    """Return the config that a recipe's text describes, without its settings of a teacher.

    Args:
        text: The name of a recipe and what differs from its defaults.

    Raises:
        ValueError: There is no such recipe, it has no such setting, or a value is not valid.

    Example:
        >>> read_recipe("admm settle=0.3 rho=0.01").settings
        {'rho': 0.01}
    """
    name, values = _split(text)
    changes = {key: value for key, value in values.items() if key != "teacher" and key not in DISTILLATION_KEYS}
    if name != SMALL:
        return NxMConfig(name).replace(**changes)
    if wrong := sorted(set(changes) - {"pattern"}):
        raise ValueError(f"The baseline 'small' takes a pattern alone; got {', '.join(wrong)}. Write 'small'.")
    return NxMConfig("dense", **changes)


def read_teaching(text: str) -> dict[str, Any]:
    """Return the settings of the teacher in a recipe's text; empty if it has none.

    Args:
        text: The name of a recipe and what differs from its defaults.

    Raises:
        ValueError: The teacher is not the dense training of the same shape, or a value is not valid.

    Example:
        >>> read_teaching("admm rho=0.01 teacher=dense weight=0.9")
        {'teacher': 'dense', 'weight': 0.9}
    """
    name, values = _split(text)
    teaching = {key: value for key, value in values.items() if key == "teacher" or key in DISTILLATION_KEYS}
    if not teaching:
        return {}
    if teaching.get("teacher") != "dense" or name == SMALL:
        raise ValueError(
            f"The teacher of {text!r} must be a dense training of its own shape; write 'admm teacher=dense'."
        )
    DistillationConfig.from_any({key: value for key, value in teaching.items() if key in DISTILLATION_KEYS})
    return teaching


# -- keys of a grid -----------------------------------------------------------------------------------------------


def belongs_to_recipe(key: str) -> bool:
    """Return whether a key of a grid is a setting of recipes, rather than an option of `run_glue.py`."""
    return key not in known_options()


def free_settings(text: str) -> set[str]:
    """Return the keys of a recipe that a grid may set: none of `dense`, and none that the text sets already."""
    config = read_recipe(text)
    if config.is_dense:
        return set()
    return {*recipes.settings(config.recipe), "pattern", "warmup", "settle"} - set(_split(text)[1])


def accepts(text: str, key: str) -> bool:
    """Return whether a recipe has a use for a key of a grid.

    Args:
        text: The recipe.
        key: An option of `run_glue.py`, or a setting of recipes.
    """
    return key in free_settings(text) if belongs_to_recipe(key) else key not in SET_BY_TRIAL


def check_key(key: str, texts: Sequence[str]) -> None:
    """Check that `run_glue.py` or at least one recipe has a use for a key of a grid.

    Args:
        key: The key.
        texts: The recipes that are compared.

    Raises:
        ValueError: None of them has a use for the key.
    """
    if any(accepts(text, key) for text in texts):
        return
    if not belongs_to_recipe(key):
        instead = SET_BY_TRIAL.get(key, "an option of compare.py")
        raise ValueError(f"{key!r} is set by each trial itself; write it as {instead}.")
    settings = {name for text in texts for name in free_settings(text)}
    raise ValueError(
        f"Neither run_glue.py nor one of the recipes has {key!r}; the recipes have "
        f"{', '.join(sorted(settings)) or 'nothing'}.{suggestion(key, settings | known_options())}"
    )
