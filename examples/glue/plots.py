"""Plots of a comparison as PNG files, where matplotlib is installed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from measures import deviation, mean
from run_glue import TASKS
from study import Part, Runs

MISSING = "There are no plots without matplotlib; `pip install nxm-hf[report]`, and then `compare.py --render`."


@dataclass(frozen=True)
class Axis:
    """What a plot has on its horizontal axis."""

    file: str
    title: str
    value: Callable[[Part, Runs], float]


AXES = (
    Axis("flops", "training FLOPs, dense = 1", Part.cost),
    Axis("similarity", "mean mask similarity", lambda part, runs: runs.similarity),
    Axis("diversity", "log10 of the number of masks, per weight", Part.diversity),
    Axis("budget", "examples trained on", lambda part, runs: runs.examples),
)


def write_plots(part: Part, folder: Path, number: int) -> list[Path]:
    """Draw a part of a study; returns the files, none without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    drawings = [("recipes", lambda axes, task: _recipes(axes, part, task))]
    for axis in AXES:
        if _varies(part, axis):
            drawings.append((axis.file, lambda axes, task, axis=axis: _scatter(axes, part, task, axis)))
    written = []
    for name, draw in drawings:
        height = max(3.6, 0.32 * len(part.labels) + 1.4) if name == "recipes" else 4.2
        figure = Figure(figsize=(5.2 * len(part.tasks) + 1.2, height), dpi=130, layout="constrained")
        for axes, task in zip(figure.subplots(1, len(part.tasks), squeeze=False)[0], part.tasks, strict=True):
            draw(axes, task)
            axes.set_title(task)
            axes.grid(alpha=0.3)
        written.append(folder / f"{name}{f'-{number + 1}' if number else ''}.png")
        figure.savefig(written[-1])
    return written


def _varies(part: Part, axis: Axis) -> bool:
    """Whether some task has more than one value to set its metric against."""
    values = {task: {round(axis.value(part, runs), 6) for runs in part.of(task)} for task in part.tasks}
    return any(sum(map(math.isfinite, found)) > 1 for found in values.values())


def _recipes(axes, part: Part, task: str) -> None:
    """Each arm's seeds as dots, their mean as a bar's middle."""
    found = part.of(task)[::-1]
    for place, runs in enumerate(found):
        axes.plot(runs.scores, [place] * len(runs.scores), ".", color="tab:gray", alpha=0.6)
        around = deviation(runs.scores)
        axes.errorbar(
            mean(runs.scores), place, xerr=None if math.isnan(around) else around, fmt="o", color="tab:blue", capsize=3
        )
    axes.set_yticks(range(len(found)), [runs.label for runs in found])
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.set_xlabel(TASKS[task].best)
    _mark_dense(axes.axvline, part, task)


def _scatter(axes, part: Part, task: str, axis: Axis) -> None:
    """The metric against a value: a line for each recipe, a point for each of its arms."""
    series: dict[str, list[tuple[float, Runs]]] = {}
    for runs in part.of(task):
        if math.isfinite(value := axis.value(part, runs)):
            series.setdefault(_series(runs), []).append((value, runs))
    for name, points in series.items():
        points.sort(key=lambda point: point[0])
        xs, ys = [x for x, _ in points], [mean(runs.scores) for _, runs in points]
        around = [deviation(runs.scores) for _, runs in points]
        bars = None if any(map(math.isnan, around)) else around
        axes.errorbar(xs, ys, yerr=bars, fmt=".-", capsize=3, label=name)
        for x, y, (_, runs) in zip(xs, ys, points, strict=True):
            axes.annotate(_rest(runs, name), (x, y), xytext=(3, 4), textcoords="offset points", fontsize=7)
    axes.set_xlabel(axis.title)
    axes.set_ylabel(TASKS[task].best)
    axes.margins(x=0.15, y=0.12)
    _mark_dense(axes.axhline, part, task, label="_" if "dense" in series else "dense")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def _series(runs: Runs) -> str:
    return f"{runs.recipe} taught" if runs.first.get("teacher") else runs.recipe


def _rest(runs: Runs, name: str) -> str:
    """What tells an arm from the others of its recipe."""
    return " ".join(word for word in runs.label.removeprefix(runs.recipe).split() if not word.startswith("teacher="))


def _mark_dense(line: Callable, part: Part, task: str, label: str = "dense") -> None:
    """Where dense training ends up, if it was run: the best of its budgets."""
    scores: Sequence[float] = [mean(runs.scores) for runs in part.of(task) if runs.recipe == "dense"]
    if scores:
        line(max(scores), linestyle="--", color="tab:gray", alpha=0.8, label=label)
