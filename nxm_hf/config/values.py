"""Values of a config: bring the user's spellings into one form."""

import difflib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from nxm_hf.families import GROUPS, ROLES, role_of
from nxm_hf.methods import Method
from nxm_hf.patterns import parse


def describe_method(method: Method) -> str:
    """Describe a method object in text that does not depend on the process.

    Args:
        method: The object.

    Returns:
        Its `repr`. If its class does not define one, the name of the class, because the default `repr` holds an
        address.
    """
    return type(method).__qualname__ if type(method).__repr__ is object.__repr__ else repr(method)


def parse_json(field: str, value: Any) -> Any:
    """Parse a JSON object given as a string, as on a command line.

    Args:
        field: Name of the config's field, for the error.
        value: The value.

    Returns:
        The dict if `value` is a string that begins with "{", else `value` unchanged.

    Raises:
        ValueError: If the string is not JSON.
    """
    if not (isinstance(value, str) and value.lstrip().startswith("{")):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"{field}={value} is not JSON ({error}). Write it as in '{{\"name\": 1}}'.") from None


def canonical_pattern(pattern: Any) -> str | dict[str, str]:
    """Return a pattern, or a dict of patterns by role, in the spelling that patterns print.

    Args:
        pattern: A pattern, its text, or a dict from role, group or "default" to one of these.

    Returns:
        The text, or the dict of texts.

    Raises:
        ValueError: If a key is not a role or a text is not a pattern.
    """
    if not isinstance(pattern, dict):
        return str(parse(pattern))
    keys = (*ROLES, *GROUPS, "default")
    if not pattern:
        raise ValueError('pattern={} names no pattern. Write {"default": "2:4"}.')
    for key in pattern:
        if key not in keys:
            raise ValueError(
                f"pattern={pattern!r} has the key {key!r}, which is no role. {_meant_role(str(key), keys)} "
                f"The roles are {', '.join(keys)}."
            )
    return {key: str(parse(text)) for key, text in pattern.items()}


def _meant_role(key: str, keys: Sequence[str]) -> str:
    """Return what to write instead of a key that is no role: the nearest one, or that of a layer with this name."""
    close = difflib.get_close_matches(key.lower(), keys, cutoff=0.6)
    near = sorted(close, key=lambda known: abs(len(known) - len(key)))  # "fnn" is as close to "ffn_in" as to "ffn"
    role = role_of(None, f"layers.0.{key}")
    if near and role == "other":
        return f"Write {near[0]!r}."
    of_layer = f" Its role is {role!r}." if role != "other" else ""
    return f'{of_layer} To choose layers by name, write pattern="2:4", include=[{key!r}].'.strip()


# Names that other libraries give to arguments of `NxMConfig`.
_OTHER_NAMES = {
    "target_modules": "include",
    "targets": "include",
    "modules_to_save": "exclude",
    "ignore": "exclude",
    "sparsity": "pattern",
    "method": "recipe",
}


def explain_unknown(name: str, value: Any, recipe: str, settings: Collection[str], fields: Collection[str]) -> str:
    """Say what to write instead of a keyword that `NxMConfig` does not have.

    Args:
        name: The keyword.
        value: Its value.
        recipe: The name of the recipe.
        settings: The settings of that recipe.
        fields: The keywords that `NxMConfig` has.

    Returns:
        A sentence.

    Example:
        >>> explain_unknown("rho", 0.01, "admm", ["rho"], ["settings"])
        "rho is a setting of the recipe 'admm'. Write settings={'rho': 0.01}."
    """
    if name in settings:
        return f"{name} is a setting of the recipe {recipe!r}. Write settings={ {name: value}!r}."
    near = difflib.get_close_matches(name, [*settings, *fields], n=1, cutoff=0.7)
    meant = _OTHER_NAMES.get(name) or (near[0] if near else None)
    if meant in settings:
        return f"NxMConfig has no {name}=. Write settings={ {meant: value}!r}."
    if meant is not None:
        return f"NxMConfig has no {name}=. Write {meant}={value!r}."
    return (
        f"NxMConfig has no {name}=; it has {', '.join(fields)}. Settings of the recipe stand in settings={{...}}, and "
        "options such as the learning rate in TrainingArguments."
    )


def as_list(field: str, value: Any) -> list[str] | None:
    """Return one text or several as a list.

    Args:
        field: Name of the config's field, for the error.
        value: A string, a sequence of strings, or None.

    Returns:
        The list, or None for None.

    Raises:
        ValueError: If an entry is not a string.
    """
    if value is None:
        return None
    several = isinstance(value, Iterable) and not isinstance(value, (str, Mapping))
    entries = list(value) if several else [value]
    if wrong := [entry for entry in entries if not isinstance(entry, str)]:
        raise ValueError(
            f"{field} takes layer names, roles and 're:' expressions as strings; got {wrong[0]!r}. "
            f'Write {field}=["ffn"].'
        )
    return entries


def check_fraction(field: str, value: Any) -> None:
    """Raise unless a value is a fraction of training.

    Args:
        field: Name of the config's field, for the error.
        value: The value.

    Raises:
        ValueError: If it is not a number from 0 to below 1.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f"{field} is a fraction of training, 0 to below 1; got {value!r}. Write {field}=0.1.")


def check_places(recipe: Any, pattern: Any, recipes: Collection[str]) -> None:
    """Raise if a pattern stands in the place of the recipe, or the other way round.

    Args:
        recipe: The value given as the recipe.
        pattern: The value given as the pattern.
        recipes: The names of all recipes.

    Raises:
        ValueError: If they are exchanged.
    """
    if isinstance(recipe, str) and looks_like_pattern(recipe):
        raise ValueError(f"{recipe!r} is a pattern, and a recipe comes first. Write pattern={recipe!r}.")
    if pattern != "dense" and pattern in recipes:  # "dense" is both
        raise ValueError(f"{pattern!r} is a recipe, not a pattern. Write recipe={pattern!r}.")


def looks_like_pattern(text: str) -> bool:
    """Return True if a text is meant as a pattern, such as "2:4", "4x2", "2/4" or "block:4:0.5", and not as a recipe.

    Args:
        text: The text.

    Example:
        >>> [looks_like_pattern(text) for text in ("2:4", "4x2", "2/4", "unstructured:0.5", "admm", "dense")]
        [True, True, True, True, False, False]
    """
    return ":" in text or text[:1].isdigit()
