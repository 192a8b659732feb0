"""A program that runs pytest in forks of itself, so that each run is spared the imports of large libraries.

Run as `python fork_server.py MODULE...` in a copy of the tree: it imports these modules, none of the tree. Then it
reads requests from stdin, one JSON object a line, and answers each with a line on stdout: the exit code, or null after
the time limit. What a run prints is added to the file "output".

    {"arguments": [...], "output": "e.txt", "limit": 30.0, "order": ["tests/a.py::test_b"]}
    {"arguments": [...], "output": "e.txt", "reach": ["nxm_hf/c.py"], "reached": "d.json"}

With "order", only these tests are run, in this order. With "reach", the tests that reach each line of these files are
written to the file "reached", with the seconds that each test took.
"""

import contextlib
import importlib
import json
import math
import os
import resource
import signal
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

MEMORY = 24 * 2**30  # bytes of address space: a fault can ask for any amount
WAITING = 5


class Order:
    """A plugin of pytest that runs some tests alone, in a given order."""

    def __init__(self, names: list[str]) -> None:
        self._places = {name: number for number, name in enumerate(names)}

    def pytest_collection_modifyitems(self, config, items) -> None:
        chosen = sorted((item for item in items if item.nodeid in self._places), key=lambda i: self._places[i.nodeid])
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in self._places])
        items[:] = chosen


class Reach:
    """A plugin of pytest that notes which tests reach which lines.

    What a fixture of several tests reaches counts for all tests of its file, as its name with "::" at the end. What is
    reached at import counts for none.

    Args:
        files: The files whose lines are wanted, from the root of the tree.
        target: The JSON file to write.
    """

    def __init__(self, files: list[str], target: str) -> None:
        from coverage import Coverage

        self._files, self._target, self._seconds = files, target, defaultdict(float)
        self._coverage = Coverage(data_file=None, include=[os.path.abspath(file) for file in files], config_file=False)
        self._running = ""

    def pytest_sessionstart(self) -> None:
        self._coverage.start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._enter(nodeid)

    def pytest_runtest_logreport(self, report) -> None:
        self._seconds[report.nodeid] += report.duration

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef) -> Iterator:
        outer = self._running
        if fixturedef.scope != "function":
            self._enter(f"{outer.split('::')[0]}::")
        try:
            return (yield)
        finally:
            self._enter(outer)

    def pytest_sessionfinish(self) -> None:
        self._coverage.stop()
        data, tests = self._coverage.get_data(), {}
        for file in self._files:
            by_line = data.contexts_by_lineno(os.path.abspath(file))
            tests[file] = {line: sorted(filter(None, names)) for line, names in by_line.items()}
        Path(self._target).write_text(json.dumps({"tests": tests, "seconds": self._seconds}))

    def _enter(self, context: str) -> None:
        self._running = context
        self._coverage.switch_context(context)


def run(request: dict) -> int:
    """Run pytest as a request says, and return the exit code."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    if limit := request.get("limit"):
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit)))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor in (1, 2):
        os.dup2(os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    plugins = []
    if request.get("order") is not None:
        plugins.append(Order(request["order"]))
    if request.get("reach"):
        plugins.append(Reach(request["reach"], request["reached"]))
    else:
        sys.dont_write_bytecode = True
    return int(pytest.main(request["arguments"], plugins=plugins))


def answer(request: dict) -> int | None:
    """Run pytest in a fork, end all that it has started, and return the exit code, or None after the time limit.

    The limit is one of CPU seconds, which a busy machine does not stretch. What only waits may take `WAITING` times as
    many seconds by the clock.
    """
    child = os.fork()
    if child == 0:
        try:
            os._exit(run(request))
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    end = time.monotonic() + WAITING * (request.get("limit") or math.inf)
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None and time.monotonic() < end:
        time.sleep(0.02)
    late = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None if late or code in (-signal.SIGXCPU, -signal.SIGKILL) else code


def main(*modules: str) -> None:
    """Import modules, and answer requests until there are no more."""
    sys.path[0] = os.getcwd()
    for module in modules:
        importlib.import_module(module)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
