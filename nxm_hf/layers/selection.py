"""What `include` and `exclude` mean: names, roles, groups and patterns, and what to say when they mean nothing."""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from nxm_hf.families.base import GROUPS, ROLES
from nxm_hf.text import shortened


@dataclass(frozen=True)
class Selection:
    """The layers of one model to choose from (name -> role), and its other matrices (name -> why they stay dense)."""

    model: str
    roles: Mapping[str, str]
    refused: Mapping[str, str]

    def names(self, option: str, entries: str | Sequence[str]) -> set[str]:
        """The layers that the entries of `option` mean. An entry that means none is an error.

        >>> toy = Selection("Toy", {"layer.0.q": "query", "layer.0.up": "ffn_in"}, {})
        >>> toy.names("include", "ffn")
        {'layer.0.up'}
        """
        names: set[str] = set()
        for entry in [entries] if isinstance(entries, str) else entries:
            matches = _matcher(option, entry)
            found = {name for name, role in self.roles.items() if matches(name, role)}
            if not found:
                raise ValueError(f"{option}={entry!r} matches no layer {self._unmatched(entry, matches)}.")
            names |= found
        return names

    def present(self) -> str:
        """The roles of these layers, as a clause."""
        return f"Roles here: {', '.join(dict.fromkeys(self.roles.values()))}"

    def _unmatched(self, entry: str, matches: Callable[[str, str], bool]) -> str:
        """Why what `entry` names stays dense, or what it may have meant."""
        refused = [f"{name} is never pruned, because {why}" for name, why in self.refused.items() if matches(name, "")]
        if refused:
            return f"that can be pruned: {shortened(refused, '; ')}"
        runs = {run for name in self.roles for run in _runs(name)}
        close = difflib.get_close_matches(entry, sorted(runs.union(ROLES, GROUPS)), n=3) or list(self.roles)[:1]
        return f"of this {self.model}. {self.present()}; closest names: {shortened(close)}"


def _matcher(option: str, entry: str) -> Callable[[str, str], bool]:
    """What `entry` asks of a name and a role. A word that is a role or a group is never a name."""
    if not isinstance(entry, str):
        raise TypeError(f"{option} takes layer names, roles and 're:' patterns as strings; got {entry!r}.")
    if entry.startswith("re:"):
        try:
            pattern = re.compile(entry[3:])
        except re.error as error:
            raise ValueError(f"{option}={entry!r} is not a regular expression: {error}.") from None
        return lambda name, role: pattern.search(name) is not None
    if entry in ROLES or entry in GROUPS:
        return lambda name, role: role in GROUPS.get(entry, (entry,))
    return lambda name, role: f".{entry.strip('.')}." in f".{name}."


def _runs(name: str) -> Iterator[str]:
    """Every run of components of a name: what an entry could have said to mean it."""
    parts = name.split(".")
    starts = [i for i, part in enumerate(parts) if not part.isdigit()]
    return (".".join(parts[i:j]) for i in starts for j in range(i + 1, len(parts) + 1))
