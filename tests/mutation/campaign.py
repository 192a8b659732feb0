"""A campaign: plants one fault after another in a copy of the tree, and runs the tests of its file."""

import hashlib
import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from pathlib import Path

from tests.mutation.operators import Mutant, lines_of_statement, mutants_of
from tests.mutation.pytest_runs import NO_TESTS, NOT_RUN, Pytest, Reach, Run

LEFT_OUT = (".git", "__pycache__", "out", "*.log", ".*_cache", ".hypothesis", "*.egg-info", "build", "dist")
QUICK = ("-m", "not slow")
REACHES = ".reach"  # the end of the name of a file beside the results: which tests reach which lines
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+::.*?)(?: - .*)?$", re.MULTILINE)  # in what pytest prints
FEW = 2  # mutants of a file for which its tests are not run without a mutant first
UNKNOWN = 10  # times the shortest limit is that of tests whose time is not known
FACTOR = 4  # a mutant may take this many times as long as its tests take without it


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

    A mutant meets tests in turns, until one fails: tests of its file that reach its line, the shortest first; the other
    tests of its file, which may reach it in processes of their own; and further tests that reach its line, by pattern.
    Which tests reach a line takes a run of all of them. So the tests of a file with few mutants are run in their order;
    the one that fails is run again without the mutant.

    Args:
        root: The root of the tree, which is copied and then left alone.
        work: An empty or missing folder for a copy of the tree.
        results: The JSON file; outcomes in it are kept unless the file or its tests have changed.
        tests_of: Return the glob pattern, from the root, of the test files of a file.
        further_tests_of: Return glob patterns of further test files, of whose tests those marked as slow are left out.
        equivalents: Mutants that are not run.
        least_seconds: The shortest time limit, in CPU seconds.
        options: Further options of pytest.
        modules: Modules that no test changes, which are imported once for all runs.
    """

    root: Path
    work: Path
    results: Path
    tests_of: Callable[[str], str]
    further_tests_of: Callable[[str], Sequence[str]] = lambda file: ()
    equivalents: Sequence[Equivalent] = ()
    least_seconds: float = 30.0
    options: Sequence[str] = ("-p", "xdist", "-n0")
    modules: Sequence[str] = ()
    _counts: Counter[str] = field(default_factory=Counter)

    def run(self, mutants: Sequence[Mutant]) -> Iterator[tuple[Mutant, str]]:
        """Yield each mutant with what came of it: "killed", "timed out", "survived" or "equivalent".

        Args:
            mutants: The mutants.

        Raises:
            RuntimeError: If tests fail without a mutant.
        """
        shutil.copytree(self.root, self.work, ignore=shutil.ignore_patterns(*LEFT_OUT), dirs_exist_ok=True)
        known = self._read()
        self._counts = Counter(mutant.file for mutant in mutants)
        with Pytest(self.work, [*self.options, "-x", "-q", "--doctest-modules"], self.modules) as pytest:
            for mutant in mutants:
                if any(equivalent.is_(mutant) for equivalent in self.equivalents):
                    yield mutant, "equivalent"
                    continue
                further = self._files(self.further_tests_of(mutant.file))
                digest = self._digest([mutant.file, *self._tests(mutant.file), *further])
                entry = known.get(mutant.key)
                if entry is None or entry["digest"] != digest:
                    entry = {**asdict(mutant), "digest": digest, "outcome": self._outcome(mutant, pytest)}
                    known[mutant.key] = entry
                    self._write(known)
                yield mutant, entry["outcome"]

    def _outcome(self, mutant: Mutant, pytest: Pytest) -> str:
        text = (self.work / mutant.file).read_text()
        seen = self._is_seen_in_order(mutant, text, pytest) if self._counts[mutant.file] <= FEW else None
        if seen:
            return "killed"
        for run in self._turns(mutant, lines_of_statement(text, mutant.line), pytest, own_too=seen is None):
            code = self._code_with(mutant, text, pytest, run)
            if code is None:
                return "timed out"
            if code and (run.order is None or code not in NOT_RUN):
                return "killed"
        return "survived"

    def _is_seen_in_order(self, mutant: Mutant, text: str, pytest: Pytest) -> bool | None:
        """Run the tests of a file in their order. Return whether one fails with the mutant alone; None if not sure."""
        own = self._tests(mutant.file)
        if self._key(own, mutant.file, ()) in self._read(REACHES):
            return None
        run = Run(own, limit=UNKNOWN * self.least_seconds)
        code = self._code_with(mutant, text, pytest, run)
        failed = FAILED.findall(pytest.output.read_text())
        if code == 0:
            return False
        return True if code and failed and pytest.run(replace(run, order=failed[:1])) == 0 else None

    def _turns(self, mutant: Mutant, lines: range, pytest: Pytest, own_too: bool) -> Iterator[Run]:
        own = self._tests(mutant.file)
        if own_too:
            reach = self._reach(own, mutant.file, pytest)
            first = reach.of(lines)
            for names in (first, [name for name in reach.times if name not in first]):
                if names:
                    yield Run(own, names, limit=self._limit(reach, names))
        for further in filter(None, (self._files([pattern]) for pattern in self.further_tests_of(mutant.file))):
            reach = self._reach(further, mutant.file, pytest, QUICK)
            last = [name for name in reach.of(lines) if not name.startswith(tuple(f"{file}::" for file in own))]
            if last:
                yield Run(further, last, QUICK, self._limit(reach, last))

    def _limit(self, reach: Reach, names: Sequence[str]) -> float:
        return max(self.least_seconds, FACTOR * reach.seconds(names))

    def _code_with(self, mutant: Mutant, text: str, pytest: Pytest, run: Run) -> int | None:
        """Return how a run ends with the mutant in the copy of the tree."""
        path = self.work / mutant.file
        path.write_text(mutant.applied_to(text))
        try:
            return pytest.run(run)
        finally:
            path.write_text(text)

    def _reach(self, tests: tuple[str, ...], file: str, pytest: Pytest, options: Sequence[str] = ()) -> Reach:
        """Return which of some tests reach the lines of a file, from a run without a mutant, or from the results."""
        files = self._reached(tests, file)
        key, kept = self._key(tests, file, options), self._read(REACHES)
        if key not in kept:
            code, reaches = pytest.reach(tests, files, options)
            if code and not (code == NO_TESTS and file not in tests):
                print(pytest.output.read_text()[-3000:])
                raise RuntimeError(f"The tests {' '.join(tests)} end with {code} without a mutant. Mend them first.")
            kept |= {key.replace(file, name): reach.to_json() for name, reach in reaches.items()}
            self._write(kept, REACHES)
        return Reach.from_json(kept[key])

    def _reached(self, tests: tuple[str, ...], file: str) -> Sequence[str]:
        return [file] if file in tests else sorted(self._counts)

    def _key(self, tests: tuple[str, ...], file: str, options: Sequence[str]) -> str:
        return " ".join((self._digest([*tests, *self._reached(tests, file)]), file, *options))

    def _tests(self, file: str) -> tuple[str, ...]:
        found = self._files([self.tests_of(file)])
        if not found:
            raise RuntimeError(f"{file} has no tests at {self.tests_of(file)}.")
        return (*found, file)  # which may hold doctests

    def _files(self, patterns: Sequence[str]) -> tuple[str, ...]:
        paths = {str(path.relative_to(self.work)) for pattern in patterns for path in self.work.glob(pattern)}
        return tuple(sorted(paths))

    def _digest(self, names: Iterable[str]) -> str:
        """Return a digest of files."""
        sha = hashlib.sha256()
        for name in names:
            sha.update((self.work / name).read_bytes())
        return sha.hexdigest()[:16]

    def _read(self, suffix: str = "") -> dict:
        path = self.results.with_suffix(f"{suffix}.json")
        return json.loads(path.read_text()) if path.is_file() else {}

    def _write(self, known: dict, suffix: str = "") -> None:
        temporary = self.results.with_suffix(".writing")
        temporary.write_text(json.dumps(known, indent=1, sort_keys=True))
        temporary.replace(self.results.with_suffix(f"{suffix}.json"))
