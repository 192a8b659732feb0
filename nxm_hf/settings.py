"""Catalogues: what a user picks by name, with its settings, its defaults and its paper."""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any


class Registry:
    """Makers by name; names are spelled with hyphens, and underscores are accepted.

    A maker is a function or a dataclass whose arguments, after the first `given`, are its settings, and whose
    docstring has a line that begins with "Reference: ".
    """

    def __init__(self, word: str, makers: Mapping[str, Callable], given: int = 0):
        self.word, self.given = word, given
        self._makers = dict(makers)

    def names(self) -> list[str]:
        """The names, in the order of the catalogue."""
        return list(self._makers)

    def find(self, name: str) -> tuple[str, Callable]:
        """The spelling of the catalogue, and the maker."""
        spelled = str(name).strip().lower().replace("_", "-")
        if spelled not in self._makers:
            near = difflib.get_close_matches(spelled, self._makers, n=1, cutoff=0.5)
            hint = f" Write {near[0]!r}." if near else ""
            raise ValueError(f"There is no {self.word} {name!r}. The catalogue has: {', '.join(self._makers)}.{hint}")
        return spelled, self._makers[spelled]

    def settings(self, name: str) -> dict[str, Any]:
        """The settings of an entry and their defaults."""
        parameters = list(inspect.signature(self.find(name)[1]).parameters.values())
        return {parameter.name: parameter.default for parameter in parameters[self.given :]}

    def make(self, name: str, *given: Any, **settings: Any) -> Any:
        """What the maker of this name makes with these settings."""
        name, maker = self.find(name)
        known = self.settings(name)
        if wrong := sorted(set(settings) - set(known)):
            has = f"has the settings {', '.join(known)}" if known else "has no settings"
            raise ValueError(f"The {self.word} {name!r} {has}; got {', '.join(map(repr, wrong))}.")
        return maker(*given, **settings)

    def describe(self, name: str) -> tuple[str, str]:
        """The first sentence of an entry's data sheet, and its reference."""
        lines = inspect.getdoc(self.find(name)[1]).splitlines()
        reference = next(line for line in lines if line.startswith("Reference: "))
        return lines[0], reference.removeprefix("Reference: ")


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
