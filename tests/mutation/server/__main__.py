"""A program that loads tests once, and then runs them again and again in forks, each time with other code.

Run as `python server MODULE...` in a copy of the tree: it imports these modules, none of the tree. Then it reads
requests from stdin, one JSON value a line, and answers each with a line on stdout.

    {"arguments": ["tests/a.py"], "files": ["nxm_hf/b.py"], "output": "e.txt", "limit": null}

A fork starts pytest with these arguments. If it can collect its tests, it answers as `LoadedTests` does, and takes the
requests that follow:

    {"tests": ["tests/a.py::test_c"], "texts": {"nxm_hf/b.py": "..."}, "reach": false, "limit": 30.0, "limits": {}}

After the request `null`, or if tests cannot be collected, the answer is {"ended": CODE}.
"""

import importlib
import json
import os
import sys
from functools import partial
from typing import Any

import pytest
from forks import in_fork
from session import Channel, LoadedTests


def load(request: dict[str, Any], channel: Channel) -> int:
    """Serve a session of pytest, and return its exit code.

    Args:
        request: What to load.
        channel: Functions that read a request and write an answer.
    """
    plugin = LoadedTests(request["files"], request["output"], channel)
    return int(pytest.main(request["arguments"], plugins=[plugin]))


def main(*modules: str) -> None:
    """Import modules, and answer requests until there are no more.

    Args:
        modules: Their names.
    """
    sys.path[0] = os.getcwd()
    for module in modules:
        importlib.import_module(module)
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")

    def write(answer: Any) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    channel = (lambda: json.loads(requests.readline() or "null")), write
    for line in iter(requests.readline, ""):
        request = json.loads(line)
        code, ended = in_fork(partial(load, request, channel), request["output"], request["limit"])
        write({"ended": ended if code == 0 else code})


if __name__ == "__main__":
    main(*sys.argv[1:])
