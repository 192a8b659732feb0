"""Forks of this process, with limits, whose results come back as JSON."""

import contextlib
import json
import math
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

MEMORY = 24 * 2**30  # bytes of address space: a fault can ask for any amount
WAITING = 5
LATE = (-signal.SIGXCPU, -signal.SIGKILL)


def in_fork(task: Callable[[], Any], output: str, limit: float | None = None) -> tuple[int | None, Any]:
    """Run a task in a fork, and end all that it has started.

    Return the exit code, or None after the time limit, and what the task returned, or None if it did not end well.

    Args:
        task: What to run. It returns what JSON can hold.
        output: The file to which all that it prints is added.
        limit: CPU seconds, which a busy machine does not stretch. What only waits may take `WAITING` times as many
            seconds by the clock.
    """
    with tempfile.TemporaryFile("w+") as answer:
        child = os.fork()
        if child == 0:
            _run(task, output, limit, answer)
        end = time.monotonic() + WAITING * (limit or math.inf)
        while (running := _is_running(child)) and time.monotonic() < end:
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        answer.seek(0)
        return None if running or code in LATE else code, json.load(answer) if code == 0 else None


def _is_running(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def _run(task: Callable[[], Any], output: str, limit: float | None, answer: Any) -> None:
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        if limit:
            hard = resource.getrlimit(resource.RLIMIT_CPU)[1]  # forks of forks may have longer limits
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), hard))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor in (1, 2):
            os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
        json.dump(task(), answer)
        answer.flush()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
