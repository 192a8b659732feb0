"""Named factories with settings, and checks of the values that their settings take."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class Registry:
    """Factories by name, each with its settings, their defaults and a reference.

    A factory is a function or a dataclass. Its first `positional` arguments are filled in by the caller of `make`, and
    the others are its settings. Its docstring has a line that begins with "Reference: ". Names are written with
    hyphens; underscores are accepted.

    Args:
        noun: The word for one entry in error messages, such as "recipe".
        factories: The factories by canonical name.
        positional: The number of leading arguments of each factory that are not settings.

    Example:
        >>> def shrink(weight, by=0.5):
        ...     '''Make a weight smaller.
        ...
        ...     Reference: Nobody, 2025
        ...     '''
        ...     return weight * by
        >>> registry = Registry("operation", {"shrink": shrink}, positional=1)
        >>> registry.settings("shrink"), registry.make("shrink", 4.0, by=0.25)
        ({'by': 0.5}, 1.0)
        >>> registry.describe("shrink")
        ('Make a weight smaller.', 'Nobody, 2025')
    """

    def __init__(self, noun: str, factories: Mapping[str, Callable[..., Any]], positional: int = 0) -> None:
        self.noun, self.positional = noun, positional
        self._factories = dict(factories)

    def names(self) -> list[str]:
        """Return the canonical names, in the order of the registry."""
        return list(self._factories)

    def find(self, name: str) -> tuple[str, Callable[..., Any]]:
        """Return the canonical name and the factory of an entry.

        Args:
            name: The name in any case, with hyphens or underscores.

        Raises:
            ValueError: If there is no such entry. The message lists all names and the closest one.
        """
        canonical = str(name).strip().lower().replace("_", "-")
        if canonical not in self._factories:
            names = ", ".join(self._factories)
            hint = _nearest(canonical, self._factories)
            raise ValueError(f"There is no {self.noun} {name!r}. The catalogue has: {names}.{hint}")
        return canonical, self._factories[canonical]

    def settings(self, name: str) -> dict[str, Any]:
        """Return the settings of an entry and their defaults.

        Args:
            name: The name of the entry.
        """
        parameters = list(inspect.signature(self.find(name)[1]).parameters.values())
        return {parameter.name: parameter.default for parameter in parameters[self.positional :]}

    def make(self, name: str, *arguments: Any, **settings: Any) -> Any:
        """Call the factory of an entry.

        Args:
            name: The name of the entry.
            arguments: The leading arguments that are not settings.
            settings: The settings that differ from the defaults.

        Raises:
            ValueError: If there is no such entry, or if it has no such setting.
        """
        name, factory = self.find(name)
        known = self.settings(name)
        if unknown := sorted(set(settings) - set(known)):
            has = f"has the settings {', '.join(known)}" if known else "has no settings"
            raise ValueError(
                f"The {self.noun} {name!r} {has}; got {', '.join(map(repr, unknown))}.{_nearest(unknown[0], known)}"
            )
        return factory(*arguments, **settings)

    def describe(self, name: str) -> tuple[str, str]:
        """Return the first line of an entry's docstring, and its reference.

        Args:
            name: The name of the entry.
        """
        lines = (inspect.getdoc(self.find(name)[1]) or "").splitlines()
        reference = next(line for line in lines if line.startswith("Reference: "))
        return lines[0], reference.removeprefix("Reference: ")


def at_least_zero(name: str, setting: str, value: Any, example: float = 1.0) -> float:
    """Return a finite number of at least 0 as a float.

    Args:
        name: The recipe or method that has the setting, for the error message.
        setting: The name of the setting.
        value: The value to check.
        example: A value that the error message tells the reader to write.

    Raises:
        ValueError: If the value is not a finite number, or is negative.

    Example:
        >>> at_least_zero("ste", "grad_scale", 1)
        1.0
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise ValueError(
            f"{setting} of {name} must be a number of at least 0; got {value!r}. Write {setting}={example}."
        )
    return float(value)


def at_least_one(name: str, setting: str, value: Any, example: int = 1) -> int:
    """Return a whole number of at least 1.

    Args:
        name: The recipe or method that has the setting, for the error message.
        setting: The name of the setting.
        value: The value to check.
        example: A value that the error message tells the reader to write.

    Raises:
        ValueError: If the value is not an int, or is below 1.

    Example:
        >>> at_least_one("adaprune", "steps", 3)
        3
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f"{setting} of {name} must be a whole number of at least 1; got {value!r}. Write {setting}={example}."
        )
    return value


def one_of(name: str, setting: str, value: T, choices: Sequence[Any]) -> T:
    """Return a value that is among the choices.

    Args:
        name: The recipe or method that has the setting, for the error message.
        setting: The name of the setting.
        value: The value to check.
        choices: The values that the setting takes.

    Raises:
        ValueError: If the value is not one of the choices.

    Example:
        >>> one_of("admm", "start", "A", ("C", "A", "B"))
        'A'
    """
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        hint = _nearest(value, [choice for choice in choices if isinstance(choice, str)])
        raise ValueError(f"{setting} of {name} must be one of {listed}; got {value!r}.{hint}")
    return value


def _nearest(text: object, names: Iterable[str]) -> str:
    """Return the sentence that tells the reader to write the nearest of some names, or "" if none is near."""
    close = difflib.get_close_matches(str(text), list(names), n=1, cutoff=0.5)
    return f" Write {close[0]!r}." if close else ""
