"""The scripts of examples and of examples/glue, which are flat files and not packages."""

import importlib
import sys
from pathlib import Path

GLUE = Path(__file__).resolve().parents[2] / "examples" / "glue"


def load(*names: str) -> tuple:
    """Import modules with their folder on `sys.path` for no longer than that takes."""
    folders = [str(GLUE), str(GLUE.parent)]
    sys.path[:0] = folders
    try:
        return tuple(map(importlib.import_module, names))
    finally:
        for folder in folders:
            sys.path.remove(folder)


run_glue, demo, glue_data, glue_metric = load("run_glue", "demo", "glue_data", "glue_metric")
made_data, squad = load("made_data", "squad")
