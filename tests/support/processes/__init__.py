"""Programs that tests run in processes of their own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def command(program: str, *arguments: object) -> list[str]:
    """Return the command line that runs a program of this folder."""
    return [sys.executable, "-m", f"{__name__}.{program}", *map(str, arguments)]


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of this process, in which `nxm_hf` and `tests` can be imported."""
    paths = [str(ROOT), *filter(None, sys.path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **changes}


def run_group(arguments: list[str], limit: float, **changes: str) -> tuple[int, str]:
    """Run a program that starts processes of its own. After a time limit, end all of them and raise.

    Args:
        arguments: The command line.
        limit: Seconds until the program counts as hung.
        **changes: Changes to the environment.

    Returns:
        The exit code, and what the program has printed.
    """
    process = subprocess.Popen(
        arguments,
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, output
