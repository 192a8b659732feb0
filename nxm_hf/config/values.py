"""Words: what a user writes in a config, a command line or a file, brought into the one spelling."""

import json
from typing import Any

from nxm_hf.families import GROUPS, ROLES
from nxm_hf.methods import Method
from nxm_hf.patterns import parse


def said(method: Method) -> str:
    """What a method object prints, or its class where that would be an address, which no other process has."""
    return type(method).__qualname__ if type(method).__repr__ is object.__repr__ else repr(method)


def from_json(field: str, value: Any) -> Any:
    """A command line's JSON as a dict; anything else as it is."""
    if not (isinstance(value, str) and value.lstrip().startswith("{")):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"{field}={value} is not JSON ({error}). Write it as in '{{\"name\": 1}}'.") from None


def spelled(pattern: Any) -> str | dict[str, str]:
    """A pattern, or a mapping of them by role, in the spelling that patterns print."""
    if not isinstance(pattern, dict):
        return str(parse(pattern))
    keys = (*ROLES, *GROUPS, "default")
    if wrong := [key for key in pattern if key not in keys] or not pattern:
        what = f"names {', '.join(map(repr, wrong))}" if pattern else "names no pattern"
        raise ValueError(f'pattern={pattern!r} {what}; its keys are {", ".join(keys)}. Write {{"default": "2:4"}}.')
    return {key: str(parse(text)) for key, text in pattern.items()}


def as_list(field: str, value: Any) -> list[str] | None:
    """One text or several, as a list."""
    entries = [value] if isinstance(value, str) else None if value is None else list(value)
    if wrong := [entry for entry in entries or () if not isinstance(entry, str)]:
        raise ValueError(
            f"{field} takes layer names, roles and 're:' patterns as texts; got {wrong[0]!r}. Write {field}=[\"ffn\"]."
        )
    return entries
