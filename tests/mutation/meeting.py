"""Mutants meet tests: in functions that are loaded already where that is possible, and imported anew where not."""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from tests.mutation.operators import Mutant, lines_of_statement
from tests.mutation.pytest_runs import CannotLoad, Ended, LoadedTests, Pytest, Reach

KILLED, TIMED_OUT, SURVIVED = "killed", "timed out", "survived"
FACTOR = 4  # a mutant may take this many times as long as its tests take without it, or as one of them does
OF_ONE = 1 / 3  # of the shortest limit: that of a single test
UNKNOWN = 10  # times the shortest limit is that of what takes an unknown time, such as imports and compilers
_times = count(1_000_000_000)  # of change; else compiled code of one mutant may be taken for that of another


@dataclass(frozen=True)
class Meeting:
    """Some tests that mutants meet, those first that reach the line, and of these the shortest first.

    First all tests are run with the code of the files compiled again and given to the functions. Only lines of that
    code count as reached. Then each mutant is given to the functions in the same way. It is imported anew, with the
    tests, in these cases:

    - No test has reached it so, or one has failed.
    - It is not in the body of a function, or its line has run at import or while tests were collected.
    - Its file is compiled.

    A test that fails is run again without the mutant, after the same tests as before and in the same way. If it fails
    again, its failure does not count.

    Args:
        pytest: The process of the tests, in the folder `work`.
        work: A copy of the tree.
        tests: The test files, from the root of the tree, and files with doctests.
        compiled: Files that are always imported anew.
        options: Further options of pytest.
        least_seconds: The shortest time limit, in CPU seconds.
        known: Return the names with which tests begin that a mutant has met before. If it is given, a mutant only
            meets tests that reach it.
    """

    pytest: Pytest
    work: Path
    tests: Sequence[str]
    compiled: Collection[str] = ()
    options: Sequence[str] = ()
    least_seconds: float = 30.0
    known: Callable[[Mutant], Sequence[str]] | None = None

    def outcomes(self, mutants: Sequence[Mutant]) -> Iterator[tuple[Mutant, str]]:
        """Yield each mutant with what came of it: "killed", "timed out" or "survived".

        Args:
            mutants: The mutants.

        Raises:
            RuntimeError: If tests fail without a mutant.
        """
        texts = {mutant.file: (self.work / mutant.file).read_text() for mutant in mutants}
        anew = []
        try:
            with self.pytest.load(self.tests, sorted(texts), self.options) as loaded:
                reach, swappable = self._reach(loaded, texts)
                for mutant in mutants:
                    lines = lines_of_statement(texts[mutant.file], mutant.line)
                    reaching, order = self._order(mutant, lines, reach)
                    ran_before = not loaded.at_import.get(mutant.file, set()).isdisjoint(lines)
                    swaps = swappable and reaching and not ran_before and mutant.file not in self.compiled
                    outcome = self._swapped(mutant, loaded, order, reach) if swaps else None
                    if outcome is None and order:
                        anew.append((mutant, order))
                    else:
                        yield mutant, outcome or SURVIVED
        except CannotLoad as problem:
            raise self._fail_alone() from problem
        for mutant, order in anew:
            yield mutant, self._imported(mutant, order, reach) or self._imported_in_turn(mutant, reach)

    def _reach(self, loaded: LoadedTests, texts: dict[str, str]) -> tuple[Reach, bool]:
        """Return what reaches which lines, and whether all tests pass if functions take over their own code."""
        for given in (texts, {}):
            ended = loaded.run(loaded.tests, given, reach=True)
            if ended.ok:
                return ended.reach, bool(given)
        raise self._fail_alone()

    def _fail_alone(self) -> RuntimeError:
        print(self.pytest.output.read_text()[-3000:])
        return RuntimeError(f"The tests {' '.join(self.tests)} fail without a mutant. Mend them first.")

    def _order(self, mutant: Mutant, lines: range, reach: Reach) -> tuple[list[str], list[str]]:
        """Return the tests that reach a mutant, and all that it meets."""
        reaching = reach.of(mutant.file, lines)
        if self.known is None:
            return reaching, [*reaching, *reach.shortest_first(set(reach.times) - set(reaching))]
        new = [name for name in reaching if not name.startswith(tuple(self.known(mutant)))]
        return new, new

    def _swapped(self, mutant: Mutant, loaded: LoadedTests, order: Sequence[str], reach: Reach) -> str | None:
        """Return what comes of a mutant whose code functions take over; None if they cannot, or if that is not sure."""
        limit = self._limit(mutant, order, reach)
        with self._planted(mutant) as (before, after):
            ended = loaded.run(order, {mutant.file: after}, limit, limits=self._limits(mutant, order, reach))
        outcome = _outcome(ended) if ended.swapped else None
        if outcome == KILLED and not loaded.run(_until(order, ended), {mutant.file: before}, limit).ok:
            return None
        return outcome

    def _imported(self, mutant: Mutant, order: Sequence[str], reach: Reach) -> str | None:
        """Return what comes of a mutant that is imported; None if that is not sure."""
        limit = self._limit(mutant, order, reach)
        with self._planted(mutant):
            ended = self._run_anew(order, reach, limit, self._limits(mutant, order, reach))
        outcome = _outcome(ended)
        if outcome == KILLED and ended.failed and not self._run_anew(_until(order, ended), reach, limit).ok:
            return None
        return outcome

    def _imported_in_turn(self, mutant: Mutant, reach: Reach) -> str:
        """Return what comes of a mutant that is imported and meets all tests in the order in which they passed."""
        order = list(reach.times)
        with self._planted(mutant):
            return _outcome(self._run_anew(order, reach, self._limit(mutant, order, reach)))

    def _run_anew(
        self, order: Sequence[str], reach: Reach, limit: float, limits: dict[str, float] | None = None
    ) -> Ended:
        """Load the tests again and run some, and those that were not there before."""
        try:
            loading = UNKNOWN * self.least_seconds
            with self.pytest.load(self.tests, (), self.options, loading) as loaded:
                new = (name for name in loaded.tests if name not in reach.times)
                return loaded.run([*order, *new], {}, limit, limits=limits)
        except CannotLoad as problem:
            return Ended(late=problem.code is None)

    def _limit(self, mutant: Mutant, order: Sequence[str], reach: Reach) -> float:
        return max(self._least(mutant), FACTOR * reach.seconds(order))

    def _limits(self, mutant: Mutant, order: Sequence[str], reach: Reach) -> dict[str, float]:
        """Return the limit of each test alone, so that one which does not end is soon told from many that are slow."""
        return {name: max(OF_ONE * self._least(mutant), FACTOR * reach.times[name]) for name in order}

    def _least(self, mutant: Mutant) -> float:
        return self.least_seconds * (UNKNOWN if mutant.file in self.compiled else 1)

    @contextmanager
    def _planted(self, mutant: Mutant) -> Iterator[tuple[str, str]]:
        """Have a mutant in the copy of the tree, for other processes. Yield the text without it, and with it."""
        path = self.work / mutant.file
        before, status = path.read_text(), path.stat()
        after = mutant.applied_to(before)
        changed = next(_times)
        path.write_text(after)
        os.utime(path, (changed, changed))
        try:
            yield before, after
        finally:
            path.write_text(before)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _outcome(ended: Ended) -> str:
    return SURVIVED if ended.ok else TIMED_OUT if ended.late else KILLED


def _until(order: Sequence[str], ended: Ended) -> Sequence[str]:
    """Return the tests that ran, with the one that failed as the last; all of them if the process died."""
    return order[: order.index(ended.failed) + 1] if ended.failed in order else order
