"""The points of a grid or a search: what each scored on rows held out, and a table of the best."""

from collections.abc import Iterable, Sequence

from nxm_hf.text import markdown_code, markdown_text

from .records import Record
from .results import ModelResults
from .statistics import mean, score
from .tables import format_number, table
from .trials import Point

SHOWN = 5  # points of a search that the table names


def best_first(records: Iterable[Record]) -> list[tuple[Point, float]]:
    """Return points with their mean scores over seeds, best first and NaN last.

    Args:
        records: The records of trials at these points.
    """
    scores: dict[Point, list[float]] = {}
    for record in records:
        point = tuple((key, value) for key, value in record["grid"])
        scores.setdefault(point, []).append(score(record))
    means = [(point, mean(values)) for point, values in scores.items()]
    return sorted(means, key=lambda pair: (pair[1] == pair[1], pair[1]), reverse=True)


def choice_section(results: ModelResults, task: str) -> list[str]:
    """Return a sentence and a table on how the settings of a task were chosen; empty if nothing was chosen.

    Args:
        results: The results of a model.
        task: The task.
    """
    records = [record for record in results.held_out if record["task"] == task]
    if not records:
        return []
    seeds = len({record["seed"] for record in records})
    rows = [
        [markdown_code(recipe), *_row(best_first(record for record in records if record["recipe"] == recipe))]
        for recipe in dict.fromkeys(record["recipe"] for record in records)
    ]
    fraction = f"{records[0]['hold_out']:.0%} of the training rows"
    count = f"{seeds} seed{'s' if seeds > 1 else ''}"
    return [f"Tried on {fraction}, held out, with {count}:", table(["recipe", "best", "then"], rows)]


def _row(points: Sequence[tuple[Point, float]]) -> list[str]:
    best, *others = [
        f"{', '.join(markdown_text(f'{key}={value}') for key, value in point) or 'as it is'}: {format_number(value)}"
        for point, value in points
    ]
    rest = [f"{len(points) - SHOWN} more"] if len(points) > SHOWN else []
    return [best, "; ".join([*others[: SHOWN - 1], *rest]) or "-"]
