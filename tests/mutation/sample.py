"""Which mutants are tried: a draw from folders, and a list of those that no test can tell from the code."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from tests.mutation.operators import Mutant, mutants_of


@dataclass(frozen=True)
class Equivalent:
    """A mutant that no test can or need tell from the code, found again by its place and text.

    Args:
        file: The path of the file, from the root of the tree.
        function: The function around the place.
        before: The code.
        after: The code of the mutant.
        reason: Why it is equivalent.
        line: The text of its line, where another mutant of the function has the same code before and after.
    """

    file: str
    function: str
    before: str
    after: str
    reason: str
    line: str = ""

    def is_(self, mutant: Mutant) -> bool:
        """Return True for this mutant.

        Args:
            mutant: Any mutant.
        """
        theirs = (mutant.file, mutant.function, mutant.before, mutant.after)
        ours = (self.file, self.function, self.before, self.after)
        return theirs == ours and self.line in ("", mutant.code)


def read_equivalents(path: Path) -> list[Equivalent]:
    """Read a list of equivalents.

    Args:
        path: A JSON file: a list of objects with the fields of `Equivalent`.
    """
    return [Equivalent(**entry) for entry in json.loads(path.read_text())]


def sample(root: Path, folders: Sequence[str], count: int, seed: int) -> list[Mutant]:
    """Draw mutants of folders, in turns. A larger sample with the same seed begins with the smaller one.

    Folders named "gpu" are left out: their tests need a GPU.

    Args:
        root: The root of the tree.
        folders: Folders or files, from the root.
        count: How many mutants to draw.
        seed: The seed of the draw.
    """
    drawn = []
    for folder in folders:
        paths = [root / folder] if (root / folder).is_file() else sorted((root / folder).rglob("*.py"))
        names = [
            str(path.relative_to(root)) for path in paths if path.name != "__init__.py" and "gpu" not in path.parts
        ]
        mutants = [mutant for name in names for mutant in mutants_of(name, (root / name).read_text())]
        random.Random(f"{seed} {folder}").shuffle(mutants)
        drawn.append(mutants)
    in_turns = (mutant for turn in zip_longest(*drawn) for mutant in turn if mutant is not None)
    return [mutant for mutant, _ in zip(in_turns, range(count), strict=False)]
