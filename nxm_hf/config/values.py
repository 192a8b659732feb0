"""Values of a config: bring what a user writes into one form."""

import json
import re
from typing import Any

from nxm_hf.families import GROUPS, ROLES
from nxm_hf.methods import Method
from nxm_hf.patterns import parse


def describe_method(method: Method) -> str:
    """Describe a method object in text that does not depend on the process.

    Args:
        method: The object.

    Returns:
        Its `repr`, or the name of its class if it has no `repr` of its own (the default one holds an address).
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
    if unknown := [key for key in pattern if key not in keys] or not pattern:
        problem = f"names {', '.join(map(repr, unknown))}" if isinstance(unknown, list) else "names no pattern"
        raise ValueError(f'pattern={pattern!r} {problem}; its keys are {", ".join(keys)}. Write {{"default": "2:4"}}.')
    return {key: str(parse(text)) for key, text in pattern.items()}


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
    entries = [value] if isinstance(value, str) else list(value)
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


def looks_like_pattern(text: str) -> bool:
    """Return True if a text is meant as a pattern, such as "2:4", "4x2" or "block:4:0.5", and not as a recipe.

    Args:
        text: The text.

    Example:
        >>> [looks_like_pattern(text) for text in ("2:4", "4x2", "unstructured:0.5", "admm", "dense")]
        [True, True, True, False, False]
    """
    return ":" in text or re.fullmatch(r"\d+\s*x\s*\d+", text) is not None
