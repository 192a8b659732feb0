"""The scripts of examples, which this benchmark runs and measures, and the one for language models.

Those of examples are flat files for people to copy, not a package. Folders are put on `sys.path` here and nowhere else.
"""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "examples" / "glue"
sys.path[:0] = [str(EXAMPLES), str(EXAMPLES.parent)]

import demo  # noqa: E402
import glue_data  # noqa: E402
import glue_metric  # noqa: E402
import question_answering  # noqa: E402
import run_glue  # noqa: E402
import squad  # noqa: E402

SQUAD = "squad"
TASKS = {**glue_data.TASKS, SQUAD: glue_data.Task(("question", "context"), best="f1")}

__all__ = [
    "EXAMPLES",
    "SQUAD",
    "TASKS",
    "demo",
    "glue_data",
    "glue_metric",
    "language_model",
    "question_answering",
    "run_glue",
    "script_of",
    "squad",
]


def script_of(task: str) -> ModuleType:
    """Return the script that trains a task.

    Args:
        task: The task.
    """
    return import_module(".squad_script", __package__) if task == SQUAD else run_glue


def language_model() -> ModuleType:
    """Import benchmarks/language_model.py, which only one preset needs."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    return import_module("benchmarks.language_model")
