"""Selection: the layers that `include` and `exclude` name, and errors for entries that name none."""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from nxm_hf.families.base import GROUPS, ROLES
from nxm_hf.layers.name_pattern import NamePattern
from nxm_hf.text import shortened


@dataclass(frozen=True)
class Selection:
    """The matrices of one model, from which `include` and `exclude` select.

    Args:
        model_class: The name of the model's class, for error messages.
        roles: The role of each layer that can be pruned, by name.
        left_dense: The reason why each of the other matrices is never pruned, by name.
    """

    model_class: str
    roles: Mapping[str, str]
    left_dense: Mapping[str, str]

    def select(self, option: str, entries: str | Sequence[str]) -> set[str]:
        """Return the names of the layers that the entries match.

        Args:
            option: The argument that the entries come from, for error messages.
            entries: One or several layer names, components of names, roles, groups or "re:" patterns.

        Raises:
            ValueError: If an entry matches no layer, or is not a regular expression after "re:".
            TypeError: If an entry is not a string.

        Example:
            >>> toy = Selection("Toy", {"layer.0.q": "query", "layer.0.up": "ffn_in"}, {})
            >>> toy.select("include", "ffn")
            {'layer.0.up'}
        """
        selected: set[str] = set()
        for entry in [entries] if isinstance(entries, str) else entries:
            matches = _matcher(option, entry)
            names = {name for name, role in self.roles.items() if matches(name, role)}
            if not names:
                raise ValueError(f"{option}={entry!r} matches no layer {self._explain(entry, matches)}.")
            selected |= names
        return selected

    def describe_roles(self) -> str:
        """Return a clause that lists the roles of these layers."""
        return f"Roles here: {', '.join(dict.fromkeys(self.roles.values()))}"

    def _explain(self, entry: str, matches: Callable[[str, str], bool]) -> str:
        """Say why the matrices that `entry` matches stay dense, or list the names closest to `entry`."""
        reasons = [
            f"{name} is never pruned, because {why}" for name, why in self.left_dense.items() if matches(name, "")
        ]
        if reasons:
            return f"that can be pruned: {shortened(reasons, '; ')}"
        candidates = {part for name in self.roles for part in _parts(name)}.union(ROLES, GROUPS)
        closest = difflib.get_close_matches(entry, sorted(candidates)) or list(self.roles)[:1]
        return f"of this {self.model_class}. {self.describe_roles()}; closest names: {shortened(closest)}"


def _matcher(option: str, entry: str) -> Callable[[str, str], bool]:
    """Return a function that tells whether a name and a role match `entry`.

    A word that is a role or a group never matches as a part of a name.
    """
    if not isinstance(entry, str):
        raise TypeError(f"{option} takes layer names, roles and 're:' patterns as strings; got {entry!r}.")
    if entry.startswith("re:"):
        try:
            pattern = NamePattern(entry.removeprefix("re:"))
        except ValueError as error:
            raise ValueError(f"{option}={entry[:100]!r} {error}.") from None
        return lambda name, role: pattern.is_in(name)
    if entry in ROLES or entry in GROUPS:
        return lambda name, role: role in GROUPS.get(entry, (entry,))
    return lambda name, role: f".{entry.strip('.')}." in f".{name}."


def _parts(name: str) -> Iterator[str]:
    """Yield every run of components of a name that does not begin with a number: the entries that would match it."""
    components = name.split(".")
    starts = [i for i, component in enumerate(components) if not component.isdigit()]
    return (".".join(components[i : j + 1]) for i in starts for j in range(i, len(components)))
