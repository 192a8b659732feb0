"""The scripts of examples/glue, which are flat files and not a package."""

import importlib
import sys
from pathlib import Path

GLUE = Path(__file__).resolve().parents[2] / "examples" / "glue"


def _load(*names: str) -> tuple:
    """Import modules with their folder on `sys.path` for no longer than that takes."""
    sys.path.insert(0, str(GLUE))
    try:
        return tuple(map(importlib.import_module, names))
    finally:
        sys.path.remove(str(GLUE))


run_glue, demo, glue_metric = _load("run_glue", "demo", "glue_metric")
