"""The scripts of examples/glue, which this benchmark runs and measures.

They are flat files for people to copy, not a package. Their folder is put on `sys.path` here and nowhere else.
"""

import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "glue"
sys.path.insert(0, str(EXAMPLES))

import demo  # noqa: E402
import glue_metric  # noqa: E402
import run_glue  # noqa: E402

TASKS = run_glue.TASKS

__all__ = ["EXAMPLES", "TASKS", "demo", "glue_metric", "run_glue"]
