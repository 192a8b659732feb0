"""The scripts of examples/glue, which this benchmark runs and measures, and the one for language models.

Those of examples are flat files for people to copy, not a package. Folders are put on `sys.path` here and nowhere else.
"""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "examples" / "glue"
sys.path.insert(0, str(EXAMPLES))

import demo  # noqa: E402
import glue_metric  # noqa: E402
import run_glue  # noqa: E402

TASKS = run_glue.TASKS

__all__ = ["EXAMPLES", "TASKS", "demo", "glue_metric", "language_model", "run_glue"]


def language_model() -> ModuleType:
    """Import benchmarks/language_model.py, which only one preset needs."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    return import_module("benchmarks.language_model")
