"""Checks of settings, in one grammar: what was set, what is needed, what to type."""

from collections.abc import Sequence
from typing import Any


def at_least_zero(name: str, setting: str, value: Any, example: float = 1.0) -> float:
    """The value as a float, or an error that says what the setting takes.

    >>> at_least_zero("ste", "grad_scale", 1)
    1.0
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise ValueError(
            f"{setting} of {name} must be a number of at least 0; got {value!r}. Write {setting}={example}."
        )
    return float(value)


def at_least_one(name: str, setting: str, value: Any, example: int = 1) -> int:
    """The value, if it counts something.

    >>> at_least_one("adaprune", "steps", 3)
    3
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f"{setting} of {name} must be a whole number of at least 1; got {value!r}. Write {setting}={example}."
        )
    return value


def one_of(name: str, setting: str, value: Any, choices: Sequence[Any]) -> Any:
    """The value, if it is one of the choices."""
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"{setting} of {name} must be one of {listed}; got {value!r}.")
    return value
