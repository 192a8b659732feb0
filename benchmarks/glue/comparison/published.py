"""Published numbers of the same model, beside ours."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nxm_hf.text import markdown_code

from .records import Record
from .results import ModelResults
from .statistics import deviation, mean, paper_metrics, score
from .tables import NONE, format_number, table

FILE = Path(__file__).resolve().parents[1] / "published.json"
NOTE = (
    "Published and ours are not alike in all. NxMTransformer shows one number for each task, the best of its grid on "
    "the validation rows themselves. Ours are chosen on rows held out, then trained with every seed; ± is the standard "
    "deviation over seeds. The numbers of Intel's card are of five seeds. In percent: Matthews' correlation on CoLA, "
    "Spearman's on STS-B, F1 on MRPC, exact match and F1 on SQuAD, accuracy elsewhere."
)


def published_rows(model: str) -> list[dict[str, Any]]:
    """Return what others published for a model.

    Args:
        model: The model's name on the Hub, or a directory of the same name.
    """
    name = Path(model).name.lower()
    return [row for row in json.loads(FILE.read_text(encoding="utf-8")) if row["model"] == name]


def published_section(results: ModelResults) -> list[str]:
    """Return a table of published numbers and ours, with a note; empty if nothing was published of the model.

    Args:
        results: The results of the model.
    """
    published = [row for row in published_rows(results.model) if "scores" in row]
    tasks = [task for task in results.tasks if any(task in row["scores"] for row in published)]
    if not tasks:
        return []
    shown = [row for row in published if row["scores"].keys() & set(tasks)]
    rows = [[row["row"], *(_cell(row["scores"].get(task, [])) for task in tasks)] for row in shown]
    for label in results.labels:
        by_task = [results.find(task, label) for task in tasks]
        cells = [_ours(list(runs.records.values())) if runs else NONE for runs in by_task]
        rows.append([f"ours: {markdown_code(label)}", *cells])
    return ["### Beside published numbers", table(["", *tasks], rows), NOTE]


def _cell(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.1f}" for value in values) or NONE


def _ours(records: Sequence[Record]) -> str:
    """Return the mean over seeds in percent, of each number that papers give."""
    columns = [[100 * score(record, name) for record in records] for name in paper_metrics(records[0]["task"])]
    spreads = [deviation(values) for values in columns]
    spread = f" ± {' / '.join(format_number(value, '.1f') for value in spreads)}" if len(records) > 1 else ""
    return " / ".join(format_number(mean(values), ".1f") for values in columns) + spread
