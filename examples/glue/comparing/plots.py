"""Plots of a comparison as PNG files, where matplotlib is installed."""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from run_glue import TASKS

from comparing.measures import deviation, mean
from comparing.results import BUDGETS
from comparing.study import Part, Runs

MISSING = "There are no plots without matplotlib; `pip install nxm-hf[report]`, and then `compare.py --render`."


@dataclass(frozen=True)
class Axis:
    """What a plot has on its horizontal axis."""

    file: str
    title: str
    value: Callable[[Part, Runs], float]
    shows: Callable[[str], bool]  # whether a sweep of such a setting says something here
    names: bool = True  # whether points are named by their setting; where the axis is that setting, names are noise


def _is_budget(setting: str) -> bool:
    return setting.strip("[") in BUDGETS


AXES = (
    Axis("flops", "training FLOPs, dense = 1", Part.cost, _is_budget),
    Axis(
        "similarity",
        "mean mask similarity",
        lambda part, runs: runs.similarity,
        lambda setting: setting != "pattern" and not _is_budget(setting),
    ),
    Axis("diversity", "log10 of the number of masks, per weight", Part.diversity, lambda setting: setting == "pattern"),
    Axis("budget", "examples trained on", lambda part, runs: runs.examples, _is_budget, names=False),
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
    """Whether some task has more than one value to set its metric against, of arms that are shown."""
    return any(len({round(value, 6) for value in _places(part, task, axis)[0].values()}) > 1 for task in part.tasks)


def _places(part: Part, task: str, axis: Axis) -> tuple[dict[str, float], list[list[str]]]:
    """Where on an axis the arms of a task stand that are shown there, and the lines through some of them."""
    values = {runs.label: value for runs in part.of(task) if math.isfinite(value := axis.value(part, runs))}
    every = _lines(values)
    lines = [
        line for line in every if len({round(values[label], 6) for label in line}) > 1 and axis.shows(_swept(line))
    ]
    shown = _shown(values, every, lines)
    return {label: value for label, value in values.items() if label in shown}, lines


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
    """The metric against a value: a point for each arm, a line through those that differ in one setting alone."""
    values, lines = _places(part, task, axis)
    found = {runs.label: runs for runs in part.of(task)}
    series = _series(part.labels)
    colors = {name: f"C{place}" for place, name in enumerate(dict.fromkeys(series.values()))}
    for line in lines:
        ordered = sorted(line, key=values.__getitem__)
        axes.plot([values[label] for label in ordered], [mean(found[label].scores) for label in ordered],
                  color=colors[series[line[-1]]], alpha=0.5)  # fmt: skip
    named: set[str] = set()
    for label in values:
        name, x, y, around = series[label], values[label], mean(found[label].scores), deviation(found[label].scores)
        bar = None if math.isnan(around) else around
        legend = "_" if name in named else name
        axes.errorbar(x, y, yerr=bar, fmt="o", markersize=4, capsize=3, color=colors[name], label=legend)
        named.add(name)
        if axis.names and _setting(label):
            point = label.split()[-1].strip("[]").removeprefix("pattern=")
            axes.annotate(point, (x, y), (4, 4), textcoords="offset points", fontsize=7)
    axes.set_xlabel(axis.title)
    axes.set_ylabel(TASKS[task].best)
    axes.margins(x=0.15, y=0.12)
    _mark_dense(axes.axhline, part, task, label="_" if "dense" in named else "dense")
    axes.legend(fontsize=8)


def _setting(label: str) -> str:
    """The key of the last thing that an arm sets, which is what a sweep appends; nothing where it has none.

    >>> _setting("admm settle=0.2 rho=0.01"), _setting("asp [max_steps=50]"), _setting("admm teacher=dense")
    ('rho', '[max_steps', '')
    """
    key, equals, _ = label.split()[-1].partition("=")
    return key if equals and key != "teacher" else ""


def _lines(labels: Collection[str]) -> list[list[str]]:
    """Arms that differ in their last setting alone, with the one that does not have it.

    >>> _lines(["asp", "admm", "admm rho=1", "admm rho=2", "admm settle=0.1"])
    [['admm', 'admm rho=1', 'admm rho=2'], ['admm', 'admm settle=0.1']]
    """
    found: dict[tuple[str, str], list[str]] = {}
    for label in labels:
        if _setting(label):
            base = " ".join(label.split()[:-1])
            found.setdefault((base, _setting(label)), [base] if base in labels else []).append(label)
    return [line for line in found.values() if len(line) > 1]


def _swept(line: Sequence[str]) -> str:
    """The setting in which the arms of a line differ."""
    return _setting(line[-1])


def _shown(labels: Iterable[str], every: Sequence[list[str]], lines: Sequence[list[str]]) -> set[str]:
    """Lines, and the arms that do not hide them: no sweep that is not among them, and beside a sweep only plain arms.

    >>> given = ["asp", "asp scores=alps", "ste", "ste refresh=1", "ste refresh=2"]
    >>> sorted(_shown(given, _lines(given), []))
    ['asp', 'asp scores=alps', 'ste']
    >>> sorted(_shown(given, _lines(given), [["ste", "ste refresh=1", "ste refresh=2"]]))
    ['asp', 'ste', 'ste refresh=1', 'ste refresh=2']
    """
    drawn = {label for line in lines for label in line}
    swept = {label for line in every if len(line) > 2 for label in line if _setting(label)}
    return drawn | {label for label in labels if label not in swept and not (_setting(label) and drawn & swept)}


def _series(labels: Sequence[str]) -> dict[str, str]:
    """What each arm is called in the legend: what begins a line by itself, what is on one as its beginning.

    >>> list(_series(["admm", "admm rho=1", "admm start=A", "admm start=A rho=1", "admm start=B"]).values())
    ['admm', 'admm', 'admm start=A', 'admm start=A', 'admm']
    >>> _series(["mask-decay grad=ste", "admm teacher=dense"])
    {'mask-decay grad=ste': 'mask-decay', 'admm teacher=dense': 'admm taught'}
    """
    named = {label: label.split()[0] + (" taught" if "teacher=dense" in label else "") for label in labels}
    lines = [(" ".join(line[-1].split()[:-1]), line) for line in _lines(labels)]
    bases = [base for base, _ in lines]
    for base, line in lines:
        named.update({label: label if label in bases else base for label in line})
    return named


def _mark_dense(line: Callable, part: Part, task: str, label: str = "dense") -> None:
    """Where dense training ends up with the budget of most arms, if it was run."""
    if dense := part.find(task, "dense"):
        line(mean(dense.scores), linestyle="--", color="tab:gray", alpha=0.8, label=label)
