"""Tests that are loaded once in a copy of the tree, and then run as often as wanted, with other code or without."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVER = Path(__file__).with_name("server")
NO_TESTS = 5  # exit code of pytest: it found none


@dataclass(frozen=True)
class Reach:
    """Which tests reach the lines of files.

    Args:
        tests: For each file and line the tests; "FILE::" stands for all tests of a file.
        times: The seconds of each test.
    """

    tests: Mapping[str, Mapping[int, Sequence[str]]]
    times: Mapping[str, float]

    def seconds(self, names: Sequence[str]) -> float:
        """Return the seconds that some tests take together.

        Args:
            names: The tests.
        """
        return sum(self.times[name] for name in names)

    def of(self, file: str, lines: range) -> list[str]:
        """Return the tests that reach any of some lines of a file, the shortest first.

        Args:
            file: The file.
            lines: The lines.
        """
        of_file = self.tests.get(file, {})
        reaching = {name for line in lines for name in of_file.get(line, [])}
        files = tuple(name for name in reaching if name.endswith("::"))
        return self.shortest_first(n for n in self.times if n in reaching or (files and n.startswith(files)))

    def shortest_first(self, names: Iterable[str]) -> list[str]:
        """Return tests in the order of their times.

        Args:
            names: The tests.
        """
        return sorted(names, key=lambda name: self.times[name])


@dataclass(frozen=True)
class Ended:
    """How a run of tests ended.

    Args:
        late: Whether it was ended after its time.
        ok: Whether all tests passed.
        failed: The test that failed, if one did. Otherwise the process died.
        swapped: Whether functions could take the other code; if not, no test was run.
        reach: Which lines of the other code the tests reached, if that was asked for and all passed.
    """

    late: bool = False
    ok: bool = False
    failed: str | None = None
    swapped: bool = True
    reach: Reach = Reach({}, {})


class LoadedTests:
    """Tests that are loaded; `Pytest.load` gives them.

    Args:
        pytest: The process.
        tests: Their names.
        at_import: For each file the lines that have run at import or while tests were collected.
    """

    def __init__(self, pytest: "Pytest", tests: Sequence[str], at_import: Mapping[str, set[int]]) -> None:
        self._pytest, self.tests, self.at_import = pytest, tests, at_import

    def run(
        self,
        tests: Sequence[str],
        texts: Mapping[str, str],
        limit: float | None = None,
        reach: bool = False,
        limits: Mapping[str, float] | None = None,
    ) -> Ended:
        """Run tests in a fork, one after another until one fails, with the code of other texts of files.

        Args:
            tests: The names of the tests, in their order; those that are not there are left out.
            texts: The text of each file whose functions get other code. It may be the text that was loaded.
            limit: CPU seconds after which all that runs is ended; None for no limit.
            reach: Whether to note which lines of that code each test reaches; without texts, of the files as they are.
            limits: CPU seconds of single tests, after which all is ended too.
        """
        of_tests = {**limits, "": limit} if limits and limit else {}
        request = {"tests": tests, "texts": texts, "limit": limit, "reach": reach, "limits": of_tests}
        answer = self._pytest.ask(request)
        if "ended" in answer:
            raise RuntimeError(f"The process of the tests has ended with {answer['ended']}.")
        passed, swapped = "lines" in answer, "not_swappable" not in answer
        found = Reach(_lines(answer["lines"]), answer["seconds"]) if passed else Reach({}, {})
        return Ended(answer["code"] is None, passed, answer.get("failed"), swapped, found)


class CannotLoad(Exception):
    """Tests cannot be loaded.

    Args:
        code: The exit code of pytest, or None after the time limit.
    """

    def __init__(self, code: int | None) -> None:
        super().__init__(f"pytest ends with {code}")
        self.code = code


class Pytest:
    """Loads tests of a folder, each time in a new fork of one process.

    Args:
        folder: The root of a tree.
        options: Options of every run.
        modules: Modules that no test changes, which are imported once for all runs.
    """

    def __init__(self, folder: Path, options: Sequence[str] = (), modules: Sequence[str] = ()) -> None:
        self.output = folder / ".output.txt"  # what pytest has printed since tests were loaded
        self._options = ["-p", "no:cacheprovider", "-p", "no:faulthandler", "-x", "-q", "--doctest-modules", *options]
        environment = {**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # it complains of plugins that were imported before it
        self._server = subprocess.Popen(
            [sys.executable, str(SERVER), *modules],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Pytest":
        return self

    def __exit__(self, *error: object) -> None:
        self._server.communicate()

    @contextmanager
    def load(
        self, tests: Sequence[str], files: Sequence[str] = (), options: Sequence[str] = (), limit: float | None = None
    ) -> Iterator[LoadedTests]:
        """Load tests while the context is open.

        Args:
            tests: Test files, from the root of the tree.
            files: The files whose code may be changed.
            options: Further options of pytest.
            limit: CPU seconds that loading may take; None for no limit.

        Raises:
            CannotLoad: If that fails.
        """
        self.output.unlink(missing_ok=True)
        arguments = [*self._options, *options, *tests]
        request = {"arguments": arguments, "files": list(files), "output": str(self.output), "limit": limit}
        answer = self.ask(request)
        if "ended" in answer:
            raise CannotLoad(answer["ended"])
        try:
            yield LoadedTests(self, answer["tests"], {f: set(lines) for f, lines in _lines(answer["lines"]).items()})
        finally:
            self.ask(None)

    def ask(self, request: object) -> dict[str, Any]:
        """Send a request to the process, and return its answer.

        Args:
            request: What `server/__main__.py` describes.
        """
        assert self._server.stdin is not None and self._server.stdout is not None
        print(json.dumps(request), file=self._server.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._server.stdout.readline())
        return answer


def _lines(by_file: Mapping[str, Mapping[str, list[str]]]) -> dict[str, dict[int, list[str]]]:
    """Return names by line, whose numbers JSON has made text."""
    return {file: {int(line): names for line, names in lines.items()} for file, lines in by_file.items()}
