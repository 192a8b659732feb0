"""A campaign: plants one fault after another in a copy of the tree, and runs the tests of its file."""

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path

from tests.mutation.operators import Mutant, mutants_of

LEFT_OUT = (".git", "__pycache__", "out", "*.log", ".*_cache", ".hypothesis", "*.egg-info", "build", "dist")
MEMORY = 24 * 2**30  # bytes of address space: a fault can ask for any amount
FACTOR = 4  # a mutant may take this many times as long as the tests take without it


@dataclass(frozen=True)
class Equivalent:
    """A mutant that no test can or need tell from the code, found again by its place and text.

    Args:
        file: The path of the file, from the root of the tree.
        function: The function around the place.
        before: The code.
        after: The code of the mutant.
        reason: Why it is equivalent.
    """

    file: str
    function: str
    before: str
    after: str
    reason: str

    def is_(self, mutant: Mutant) -> bool:
        """Return True for this mutant.

        Args:
            mutant: Any mutant.
        """
        theirs = (mutant.file, mutant.function, mutant.before, mutant.after)
        return theirs == (self.file, self.function, self.before, self.after)


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


@dataclass
class Campaign:
    """Runs mutants, and keeps what came of them in a file, from which a later run goes on.

    Args:
        root: The root of the tree, which is only read.
        work: An empty or missing folder for a copy of the tree.
        results: The JSON file; outcomes in it are kept unless the file or its tests have changed.
        tests_of: Return the glob pattern, from the root, of the test files of a file.
        equivalents: Mutants that are not run.
        least_seconds: The shortest time limit.
        options: Further options of pytest.
    """

    root: Path
    work: Path
    results: Path
    tests_of: Callable[[str], str]
    equivalents: Sequence[Equivalent] = ()
    least_seconds: float = 30.0
    options: Sequence[str] = ("-n0",)
    _seconds: dict[tuple[str, ...], float] = field(default_factory=dict)

    def run(self, mutants: Sequence[Mutant]) -> Iterator[tuple[Mutant, str]]:
        """Yield each mutant with what came of it: "killed", "timed out", "survived" or "equivalent".

        Args:
            mutants: The mutants.

        Raises:
            RuntimeError: If tests fail without a mutant.
        """
        shutil.copytree(self.root, self.work, ignore=shutil.ignore_patterns(*LEFT_OUT), dirs_exist_ok=True)
        known = json.loads(self.results.read_text()) if self.results.is_file() else {}
        for mutant in mutants:
            if any(equivalent.is_(mutant) for equivalent in self.equivalents):
                yield mutant, "equivalent"
                continue
            digest = self._digest(mutant)
            entry = known.get(mutant.key)
            if entry is None or entry["digest"] != digest:
                entry = {**asdict(mutant), "digest": digest, "outcome": self._outcome(mutant)}
                known[mutant.key] = entry
                self._write(known)
            yield mutant, entry["outcome"]

    def _outcome(self, mutant: Mutant) -> str:
        tests = self._tests(mutant.file)
        if tests not in self._seconds:
            begin = time.monotonic()
            if (code := self._pytest(tests, None)) != 0:
                raise RuntimeError(f"The tests {' '.join(tests)} end with {code} without a mutant. Mend them first.")
            self._seconds[tests] = time.monotonic() - begin
        path, text = self.work / mutant.file, (self.root / mutant.file).read_text()
        path.write_text(mutant.applied_to(text))
        try:
            code = self._pytest(tests, max(self.least_seconds, FACTOR * self._seconds[tests]))
        finally:
            path.write_text(text)
        return "timed out" if code is None else "killed" if code else "survived"

    def _tests(self, file: str) -> tuple[str, ...]:
        found = sorted(str(path.relative_to(self.root)) for path in self.root.glob(self.tests_of(file)))
        if not found:
            raise RuntimeError(f"{file} has no tests at {self.tests_of(file)}.")
        return (*found, file)  # which may hold doctests

    def _pytest(self, tests: Sequence[str], limit: float | None) -> int | None:
        """Run tests in the copy until one fails, and return the exit code, or None after the time limit."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--doctest-modules"]
        environment = {**os.environ, "PYTHONPATH": str(self.work), "PYTHONDONTWRITEBYTECODE": "1"}
        process = subprocess.Popen(
            [*command, *self.options, *tests],
            cwd=self.work,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_limit_memory,
        )
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end_group(process)

    def _digest(self, mutant: Mutant) -> str:
        """Return a digest of the file and of its tests."""
        sha = hashlib.sha256()
        for name in (mutant.file, *self._tests(mutant.file)):
            sha.update((self.root / name).read_bytes())
        return sha.hexdigest()[:16]

    def _write(self, known: dict) -> None:
        temporary = self.results.with_suffix(".writing")
        temporary.write_text(json.dumps(known, indent=1, sort_keys=True))
        temporary.replace(self.results)


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def _end_group(process: subprocess.Popen) -> None:
    """End a process with all that it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # nothing is left
    process.wait()
