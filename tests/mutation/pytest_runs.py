"""Runs of pytest in a copy of the tree, which a server forks one after another."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SERVER = Path(__file__).with_name("fork_server.py")
NO_TESTS = 5  # exit code of pytest: it found none
NOT_RUN = (4, NO_TESTS)  # 4: it was asked for something that is not there


@dataclass(frozen=True)
class Run:
    """What to run.

    Args:
        tests: Test files, from the root of the tree.
        order: The tests to run, in this order; None for all tests of the files.
        options: Further options of pytest.
        limit: CPU seconds after which all that runs is ended; None for no limit.
    """

    tests: Sequence[str]
    order: Sequence[str] | None = None
    options: Sequence[str] = ()
    limit: float | None = None


@dataclass(frozen=True)
class Reach:
    """Which tests reach the lines of a file.

    Args:
        tests: For each line its tests; "FILE::" stands for all tests of a file.
        times: The seconds of each test.
    """

    tests: dict[int, list[str]]
    times: dict[str, float]

    @classmethod
    def from_json(cls, payload: dict[str, Any]) -> "Reach":
        """Return what `to_json` was called of.

        Args:
            payload: What it returned.
        """
        return cls({int(line): names for line, names in payload["tests"].items()}, payload["times"])

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)

    def seconds(self, names: Sequence[str]) -> float:
        """Return the seconds that some tests take together.

        Args:
            names: The tests.
        """
        return sum(self.times[name] for name in names)

    def of(self, lines: range) -> list[str]:
        """Return the tests that reach any of some lines, the shortest first.

        Args:
            lines: The lines.
        """
        reaching = {name for line in lines for name in self.tests.get(line, [])}
        files = tuple(name for name in reaching if name.endswith("::"))
        chosen = [name for name in self.times if name in reaching or (files and name.startswith(files))]
        return sorted(chosen, key=lambda name: self.times[name])


class Pytest:
    """Runs pytest in a folder, each time in a new fork of one process.

    Args:
        folder: The root of a tree.
        options: Options of every run.
        modules: Modules that are imported once for all runs.
    """

    def __init__(self, folder: Path, options: Sequence[str], modules: Sequence[str] = ()) -> None:
        self._folder, self.output = folder, folder / ".output.txt"  # of the last run
        self._options = ["-p", "no:cacheprovider", *options]
        environment = {**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1", "COVERAGE_CORE": "ctrace"}
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

    def run(self, run: Run) -> int | None:
        """Run tests until one fails, and return the exit code of pytest, or None after the time limit.

        Args:
            run: What to run.
        """
        return self._ask(run, limit=run.limit, order=run.order)

    def reach(
        self, tests: Sequence[str], files: Sequence[str], options: Sequence[str] = ()
    ) -> tuple[int | None, dict[str, Reach]]:
        """Run tests, and return the exit code, and for each file which tests reach its lines.

        Args:
            tests: Test files.
            files: The files whose lines are wanted.
            options: Further options of pytest.
        """
        target = self._folder / ".reached.json"
        target.unlink(missing_ok=True)
        code = self._ask(Run(tests, None, options), reach=list(files), reached=str(target))
        reached = json.loads(target.read_text()) if target.is_file() else {"tests": {}, "seconds": {}}
        lines = {file: reached["tests"].get(file, {}) for file in files}
        return code, {file: Reach.from_json({"tests": lines[file], "times": reached["seconds"]}) for file in files}

    def _ask(self, run: Run, **more: object) -> int | None:
        assert self._server.stdin is not None and self._server.stdout is not None
        self.output.unlink(missing_ok=True)
        request = {"output": str(self.output), "arguments": [*self._options, *run.options, *run.tests], **more}
        print(json.dumps(request), file=self._server.stdin, flush=True)
        answer: int | None = json.loads(self._server.stdout.readline())
        return answer
