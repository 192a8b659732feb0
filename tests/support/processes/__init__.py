"""Programs that tests run in processes of their own."""

import os
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
