"""A session of pytest that has collected its tests, and then runs any of them in forks, with the code it is given."""

import importlib
import math
import os
import resource
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import zip_longest
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from code_swap import NotSwappable, loaded_functions, swap
from forks import in_fork
from line_tracer import LineTracer

Channel = tuple[Callable[[], Any], Callable[[Any], None]]


class LoadedTests:
    """A plugin of pytest that answers requests instead of running all tests.

    First it says which tests there are, and which lines of the files have run at import or while tests were collected.

    Args:
        files: The files whose code may be changed, from the root of the tree.
        output: The file for what tests print.
        channel: Functions that read a request and write an answer.
    """

    def __init__(self, files: list[str], output: str, channel: Channel) -> None:
        self._files = {os.path.abspath(file): file for file in files}
        self._texts = {path: Path(path).read_text() for path in self._files}
        self._output, (self._read, self._write) = output, channel
        self._functions: dict[str, list[FunctionType]] = {}
        self._tracer = LineTracer(self._files)
        self._seconds: dict[str, float] = defaultdict(float)

    def pytest_sessionstart(self) -> None:
        self._tracer.start()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        if session.testsfailed:
            self._tracer.stop()
            return None  # pytest says why
        for file in self._files.values():
            with suppress(Exception):  # a file that cannot be loaded has no functions
                importlib.import_module(file.removesuffix(".py").replace("/", "."))
        self._tracer.stop()
        self._functions = loaded_functions(self._files)
        self._write({"tests": [item.nodeid for item in session.items], "lines": self._by_file(self._tracer)})
        while (request := self._read()) is not None:
            limit = request.pop("limit")
            code, answer = in_fork(partial(self._run, session, **request), self._output, limit)
            self._write({"code": code, **(answer or {})})
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] += report.duration

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[Any]:
        """Note what a fixture of several tests reaches for all tests of its file."""
        outer = self._tracer.enter("")
        self._tracer.enter(outer if fixturedef.scope == "function" else f"{outer.split('::')[0]}::")
        try:
            return (yield)
        finally:
            self._tracer.enter(outer)

    def _run(
        self, session: pytest.Session, tests: list[str], texts: dict[str, str], reach: bool, limits: dict[str, float]
    ) -> dict[str, Any]:
        """Run tests with other texts of files, until one fails. With `reach`, note the lines of the new code."""
        codes: set[int] = set()
        try:
            for file, text in texts.items():
                path = os.path.abspath(file)
                codes |= swap(self._functions[path], path, self._texts[path], text)
        except NotSwappable as problem:
            return {"not_swappable": str(problem)}
        self._tracer = LineTracer(self._files, codes if texts else None)  # without texts, those of all code
        if reach:
            self._tracer.start()
        by_name = {item.nodeid: item for item in session.items}
        items = [by_name[name] for name in tests if name in by_name]
        for item, following in zip_longest(items, items[1:]):
            self._tracer.enter(item.nodeid)
            if limits:
                _limit(limits.get(item.nodeid, limits[""]), limits[""])
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.testsfailed:
                return {"failed": item.nodeid}
        self._tracer.stop()
        return {"lines": self._by_file(self._tracer), "seconds": self._seconds}

    def _by_file(self, tracer: LineTracer) -> dict[str, Any]:
        return {self._files[path]: lines for path, lines in tracer.lines().items()}


def _limit(seconds: float, whole: float) -> None:
    """End this process when it has used this many more CPU seconds, or `whole` of them since it began."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    end = min(usage.ru_utime + usage.ru_stime + seconds, whole)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(end), resource.getrlimit(resource.RLIMIT_CPU)[1]))
