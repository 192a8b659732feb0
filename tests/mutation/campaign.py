"""A campaign: plants one fault after another in a copy of the tree, and runs the tests of its file."""

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path

from tests.mutation.meeting import SURVIVED, Meeting
from tests.mutation.operators import Mutant
from tests.mutation.pytest_runs import Pytest
from tests.mutation.sample import Equivalent

LEFT_OUT = (".git", "__pycache__", "out", "*.log", ".*_cache", ".hypothesis", "*.egg-info", "build", "dist")
QUICK = ("-m", "not slow")
NOT_SEEN_YET = "not seen yet"  # in the results: by the tests of the file


@dataclass
class Campaign:
    """Runs mutants, and keeps what came of them in a file, from which a later run goes on.

    Mutants of files with the same tests meet them together, as `Meeting` describes. Those that survive meet further
    tests, one pattern after another, as far as they reach the line.

    Args:
        root: The root of the tree, which is copied and then left alone.
        work: An empty or missing folder for a copy of the tree.
        results: The JSON file; outcomes in it are kept unless the file or its tests have changed.
        tests_of: Return the glob pattern, from the root, of the test files of a file.
        further_tests_of: Return glob patterns of further test files, of whose tests those marked as slow are left out.
        compiled: Files that are imported anew for each mutant.
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
    compiled: Collection[str] = ()
    equivalents: Sequence[Equivalent] = ()
    least_seconds: float = 30.0
    options: Sequence[str] = ("-p", "xdist", "-n0")
    modules: Sequence[str] = ()

    def run(self, mutants: Sequence[Mutant]) -> Iterator[tuple[Mutant, str]]:
        """Yield each mutant with what came of it: "killed", "timed out", "survived" or "equivalent".

        Args:
            mutants: The mutants. They come back in another order.

        Raises:
            RuntimeError: If tests fail without a mutant.
        """
        shutil.copytree(self.root, self.work, ignore=shutil.ignore_patterns(*LEFT_OUT), dirs_exist_ok=True)
        known, left, survivors = self._read(), [], []
        for mutant in mutants:
            entry = known.get(mutant.key)
            if any(equivalent.is_(mutant) for equivalent in self.equivalents):
                yield mutant, "equivalent"
            elif entry is None or entry["digest"] != self._digest(mutant):
                left.append(mutant)
            elif entry["outcome"] == NOT_SEEN_YET:
                survivors.append(mutant)
            else:
                yield mutant, entry["outcome"]
        if not left and not survivors:
            return
        with Pytest(self.work, self.options, self.modules) as pytest:
            for mutant, outcome in self._outcomes(left, survivors, pytest):
                known[mutant.key] = {**asdict(mutant), "digest": self._digest(mutant), "outcome": outcome}
                self._write(known)
                if outcome != NOT_SEEN_YET:
                    yield mutant, outcome

    def _outcomes(
        self, mutants: Sequence[Mutant], survivors: list[Mutant], pytest: Pytest
    ) -> Iterator[tuple[Mutant, str]]:
        for pattern in dict.fromkeys(self.tests_of(mutant.file) for mutant in mutants):
            group = [mutant for mutant in mutants if self.tests_of(mutant.file) == pattern]
            tests = dict.fromkeys(name for mutant in group for name in self._own_tests(mutant.file))
            meeting = Meeting(pytest, self.work, list(tests), self.compiled, (), self.least_seconds)
            for mutant, outcome in meeting.outcomes(group):
                if outcome == SURVIVED and self.further_tests_of(mutant.file):
                    survivors.append(mutant)
                    outcome = NOT_SEEN_YET
                yield mutant, outcome
        yield from self._further_outcomes(survivors, pytest)

    def _further_outcomes(self, survivors: list[Mutant], pytest: Pytest) -> Iterator[tuple[Mutant, str]]:
        in_turns = zip_longest(*(self.further_tests_of(mutant.file) for mutant in survivors))
        for pattern in dict.fromkeys(pattern for turn in in_turns for pattern in turn if pattern is not None):
            group = [mutant for mutant in survivors if pattern in self.further_tests_of(mutant.file)]
            tests = self._files([pattern])
            if not group or not tests:
                continue
            meeting = Meeting(pytest, self.work, tests, self.compiled, QUICK, self.least_seconds, self._begins_of_own)
            for mutant, outcome in meeting.outcomes(group):
                if outcome != SURVIVED:
                    survivors.remove(mutant)
                    yield mutant, outcome
        yield from ((mutant, SURVIVED) for mutant in survivors)

    def _own_tests(self, file: str) -> list[str]:
        found = self._files([self.tests_of(file)])
        if not found:
            raise RuntimeError(f"{file} has no tests at {self.tests_of(file)}.")
        return [*found, file]  # which may hold doctests

    def _begins_of_own(self, mutant: Mutant) -> list[str]:
        return [f"{name}::" for name in self._own_tests(mutant.file)]

    def _files(self, patterns: Iterable[str]) -> list[str]:
        paths = {str(path.relative_to(self.work)) for pattern in patterns for path in self.work.glob(pattern)}
        return sorted(paths)

    def _digest(self, mutant: Mutant) -> str:
        """Return a digest of the file and its tests."""
        sha = hashlib.sha256()
        for name in [*self._own_tests(mutant.file), *self._files(self.further_tests_of(mutant.file))]:
            sha.update((self.work / name).read_bytes())
        return sha.hexdigest()[:16]

    def _read(self) -> dict:
        return json.loads(self.results.read_text()) if self.results.is_file() else {}

    def _write(self, known: dict) -> None:
        temporary = self.results.with_suffix(".writing")
        temporary.write_text(json.dumps(known, indent=1, sort_keys=True))
        temporary.replace(self.results)
