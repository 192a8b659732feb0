"""Points of a grid or a search: what each scored on rows held out, and a table of that."""

from collections.abc import Iterable, Sequence

from comparing.arms import Point
from comparing.measures import mean, score
from comparing.study import Part
from comparing.tables import number, table

MOST = 5  # points that are named; a search may have tried hundreds


def best_first(records: Iterable[dict]) -> list[tuple[Point, float]]:
    """The points that records are of, with their means over seeds; what is no number is last."""
    scores: dict[Point, list[float]] = {}
    for record in records:
        scores.setdefault(tuple(map(tuple, record["grid"])), []).append(score(record))
    means = [(point, mean(found)) for point, found in scores.items()]
    return sorted(means, key=lambda pair: (pair[1] == pair[1], pair[1]), reverse=True)


def tried(part: Part, task: str) -> list[str]:
    """What the settings of a task were chosen by; nothing where nothing was chosen."""
    held = [record for record in part.held_out if record["task"] == task]
    if not held:
        return []
    seeds = len({record["seed"] for record in held})
    rows = [
        [f"`{recipe}`", *_row(best_first(record for record in held if record["recipe"] == recipe))]
        for recipe in dict.fromkeys(record["recipe"] for record in held)
    ]
    share, again = f"{held[0]['hold_out']:.0%} of the training rows", f"{seeds} seed{'s' if seeds > 1 else ''}"
    return [f"Tried on {share}, held out, with {again}:", table(["recipe", "best", "then"], rows)]


def _row(points: Sequence[tuple[Point, float]]) -> list[str]:
    best, *others = [
        f"{', '.join(f'{key}={value}' for key, value in point) or 'as it is'}: {number(found)}"
        for point, found in points
    ]
    left = [f"{len(points) - MOST} more"] if len(points) > MOST else []
    return [best, "; ".join([*others[: MOST - 1], *left]) or "-"]
