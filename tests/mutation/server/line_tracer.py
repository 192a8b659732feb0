"""Which lines of some files run, and on behalf of which test."""

import sys
import threading
from collections import defaultdict
from collections.abc import Collection
from types import FrameType
from typing import Any


class LineTracer:
    """Notes the lines that run, under the name that was entered last.

    Args:
        paths: The files, as `co_filename` gives them.
        codes: The `id` of each code object whose lines count; None for all code of the files.
    """

    def __init__(self, paths: Collection[str], codes: Collection[int] | None = None) -> None:
        self._paths, self._codes = frozenset(paths), codes
        self._lines: dict[str, set[tuple[str, int]]] = defaultdict(set)
        self._running = self._lines[""]
        self._name = ""

    def start(self) -> None:
        """Trace this thread, and those that it starts."""
        threading.settrace(self._call)
        sys.settrace(self._call)

    def stop(self) -> None:
        """Trace no more."""
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]

    def enter(self, name: str) -> str:
        """Note lines under another name from now on, and return the last one.

        Args:
            name: Such as the name of a test.
        """
        last, self._name = self._name, name
        self._running = self._lines[name]
        return last

    def lines(self) -> dict[str, dict[int, list[str]]]:
        """Return, for each file and line, the names under which it ran."""
        found: dict[str, dict[int, list[str]]] = {path: defaultdict(list) for path in self._paths}
        for name in sorted(self._lines):
            for path, line in self._lines[name]:
                found[path][line].append(name)
        return found

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if code.co_filename in self._paths and (self._codes is None or id(code) in self._codes):
            return self._line
        return None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        self._running.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line
