"""Programs that tests run in processes of their own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
OF_GLOO = ("gloo", "Connection", "Application timeout")  # what its errors say; not all of them name it


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


def run_sharded(program: str, folder: Path, group: str = "*") -> Path:
    """Run a program that trains with sharded weights in groups of processes, and raise if one of them has failed.

    Args:
        program: The program. Process r of a group leaves its facts in `facts-GROUP-r.json`.
        folder: Where it writes.
        group: The names of the groups that must not fail, as in a glob.

    Returns:
        The folder.
    """
    code, output = run_group(command(program, folder), 600, OMP_NUM_THREADS="1")
    errors = [facts["error"] for facts in map(read_facts, folder.glob(f"facts-{group}.json")) if "error" in facts]
    assert code == 0 and not errors, "\n".join(errors) or output
    return folder


def facts_of(folder: Path, group: str | int, processes: int) -> list[dict[str, Any]]:
    """Return the facts of the processes of a group.

    Args:
        folder: The folder of the program.
        group: The name of the group.
        processes: Their number.
    """
    return [read_facts(folder / f"facts-{group}-{rank}.json") for rank in range(processes)]


def read_facts(path: Path) -> dict[str, Any]:
    """Return the facts that a process has written.

    Args:
        path: The file.
    """
    return json.loads(path.read_text())
