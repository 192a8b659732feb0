"""Plots of a comparison as PNG files, if matplotlib is installed."""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from nxm_hf import recipes

from .example_scripts import TASKS
from .options import BUDGETS
from .plot_labels import Label, place
from .results import ModelResults, Runs
from .statistics import deviation, mean

_ALONG = [part / 8 for part in range(-8, 9)]  # an error bar, as points that no label may cover
NO_PLOTS = "There are no plots without matplotlib; `pip install nxm-hf[report]`, and then `compare.py --render`."


@dataclass(frozen=True)
class Axis:
    """The horizontal axis of a plot.

    Args:
        file: The name of the plot's file.
        title: The title of the axis.
        value: Where a variant stands on it.
        shows: Whether a sweep of a setting is worth a line on this plot.
        names_points: Whether to write the setting beside each point; needless where the axis is that setting.
    """

    file: str
    title: str
    value: Callable[[ModelResults, Runs], float]
    shows: Callable[[str], bool]
    names_points: bool = True


def _is_budget(setting: str) -> bool:
    return setting.strip("[") in BUDGETS


def _is_pattern(setting: str) -> bool:
    return setting == "pattern"


def _is_of_recipe(setting: str) -> bool:
    return not _is_pattern(setting) and not _is_budget(setting)


AXES = (
    Axis("flops", "training FLOPs, dense = 1", ModelResults.cost, _is_budget),
    Axis("similarity", "mean mask similarity", lambda results, runs: runs.similarity, _is_of_recipe),
    Axis("diversity", "log10 of the number of masks, per weight", ModelResults.diversity, _is_pattern),
    Axis("budget", "examples trained on", lambda results, runs: runs.examples, _is_budget, names_points=False),
)


def write_plots(results: ModelResults, folder: Path, number: int) -> list[Path]:
    """Draw the results of a model: a plot of all scores, and one for each axis on which they differ.

    Args:
        results: The results of the model.
        folder: Where to write the files.
        number: The position of the model on the page, which tells its files apart from those of others.

    Returns:
        The files; none without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return []
    plots: dict[str, Callable[[Any, str], None]] = {"recipes": partial(_draw_scores, results)}
    for axis in AXES:
        if _varies(results, axis):
            plots[axis.file] = partial(_draw_against, results, axis)
    files = []
    for name, draw in plots.items():
        is_list = name == "recipes"
        height = max(3.6, 0.32 * len(results.labels) + 1.4) if is_list else 4.8
        width = 3.6 * len(results.tasks) + 3.2 if is_list else max(5.2 * len(results.tasks), 6.4)
        figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)  # which knows how large a text is
        columns = figure.subplots(1, len(results.tasks), squeeze=False, sharey=is_list)[0]
        for axes, task in zip(columns, results.tasks, strict=True):
            axes.set_title(task)
            axes.grid(alpha=0.3)
            draw(axes, task)
        if not is_list:
            _finish(figure, columns, results, name)
        files.append(folder / f"{name}{f'-{number + 1}' if number else ''}.png")
        figure.savefig(files[-1])
    return files


# -- drawing ------------------------------------------------------------------------------------------------------


def _draw_scores(results: ModelResults, axes: Any, task: str) -> None:
    """Draw the seeds of each variant as dots, and mean ± deviation as a bar."""
    heights = {label: height for height, label in enumerate(results.labels[::-1])}  # the same for all tasks
    for runs in results.of(task):
        height = heights[runs.label]
        axes.plot(runs.scores, [height] * len(runs.scores), ".", color="tab:gray", alpha=0.6)
        bar = _error_bar(runs)
        axes.errorbar(mean(runs.scores), height, xerr=bar, fmt="o", color="tab:blue", capsize=3)
    axes.set_yticks(list(heights.values()), list(heights))
    axes.set_ylim(-0.6, len(heights) - 0.4)
    axes.set_xlabel(TASKS[task].best)
    _draw_dense(axes.axvline, results, task)


def _draw_against(results: ModelResults, axis: Axis, axes: Any, task: str) -> None:
    """Draw the metric against an axis: a point for each variant, and a line through the numbers of one sweep."""
    values, lines = _positions(results, task, axis)
    variants = {runs.label: runs for runs in results.of(task)}
    names = _legend_names(results.labels)
    colors = {name: f"C{number}" for number, name in enumerate(dict.fromkeys(names.values()))}
    for line in lines:
        numbers = {label: _swept_number(variants[label], _last_setting(line[-1])) for label in line}
        ordered = sorted((label for label in line if not math.isnan(numbers[label])), key=numbers.__getitem__)
        scores = [mean(variants[label].scores) for label in ordered]
        axes.plot([values[label] for label in ordered], scores, color=colors[names[line[-1]]], alpha=0.5)
    in_legend: set[str] = set()
    for label, x in values.items():
        name, runs = names[label], variants[label]
        y = mean(runs.scores)
        entry = "_" if name in in_legend else name  # matplotlib leaves "_" out of the legend
        axes.errorbar(x, y, yerr=_error_bar(runs), fmt="o", markersize=4, capsize=3, color=colors[name], label=entry)
        in_legend.add(name)
    axes.set_xlabel(axis.title)
    axes.set_ylabel(TASKS[task].best)
    axes.margins(x=0.15, y=0.12)
    _draw_dense(axes.axhline, results, task, label="_" if "dense" in in_legend else "dense")


def _finish(figure: Any, columns: Sequence[Any], results: ModelResults, name: str) -> None:
    """Add one legend below all tasks, and then the labels of points, which need to know the final limits."""
    handles: dict[str, Any] = {}
    for axes in columns:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4, fontsize=8)
    axis = next(each for each in AXES if each.file == name)
    if not axis.names_points:
        return
    labelled = {task: _labels(results, task, axis) for task in results.tasks}
    keys = {each.text.partition("=")[0] for labels in labelled.values() for each in labels if "=" in each.text}
    for axes, task in zip(columns, results.tasks, strict=True):
        if len(keys) == 1 and labelled[task]:
            axes.set_xlabel(f"{axis.title}; labels: {next(iter(keys))}")
    figure.draw_without_rendering()
    for axes, task in zip(columns, results.tasks, strict=True):
        values, _ = _positions(results, task, axis)
        drawn = [(x, runs) for runs in results.of(task) if (x := values.get(runs.label)) is not None]
        points = [(x, mean(runs.scores) + part * (_error_bar(runs) or 0)) for x, runs in drawn for part in _ALONG]
        shortened = [
            replace(label, text=label.text.partition("=")[2] or label.text) if len(keys) == 1 else label
            for label in labelled[task]
        ]
        place(axes, shortened, points)


def _labels(results: ModelResults, task: str, axis: Axis) -> list[Label]:
    """Return the label of each point that has one."""
    names, labels = _legend_names(results.labels), []
    colors = {name: f"C{number}" for number, name in enumerate(dict.fromkeys(names.values()))}
    values, _ = _positions(results, task, axis)
    for runs in results.of(task):
        if runs.label in values and _last_setting(runs.label):
            text = runs.label.split()[-1].strip("[]").removeprefix("pattern=")
            labels.append(Label(text, values[runs.label], mean(runs.scores), colors[names[runs.label]]))
    return labels


def _swept_number(runs: Runs, setting: str) -> float:
    """Return the number that a variant has for a swept setting; NaN if it is a word, which has no order."""
    if _is_budget(setting):
        return runs.examples
    config = runs.first["config"]
    settings = {**recipes.settings(runs.recipe), **config["settings"]} if runs.recipe in recipes.names() else {}
    value = {**config, **settings}.get(setting)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def _error_bar(runs: Runs) -> float | None:
    spread = deviation(runs.scores)
    return None if math.isnan(spread) else spread


def _draw_dense(draw_line: Callable[..., Any], results: ModelResults, task: str, label: str = "dense") -> None:
    """Draw a line at the score of dense training with the usual budget, if it was run."""
    if dense := results.find(task, "dense"):
        draw_line(mean(dense.scores), linestyle="--", color="tab:gray", alpha=0.8, label=label)


# -- what is drawn ------------------------------------------------------------------------------------------------


def _varies(results: ModelResults, axis: Axis) -> bool:
    """Return whether the shown variants of some task have more than one value on an axis."""
    return any(
        len({round(value, 6) for value in _positions(results, task, axis)[0].values()}) > 1 for task in results.tasks
    )


def _positions(results: ModelResults, task: str, axis: Axis) -> tuple[dict[str, float], list[list[str]]]:
    """Return where the shown variants of a task stand on an axis, and the lines through some of them."""
    values = {runs.label: value for runs in results.of(task) if math.isfinite(value := axis.value(results, runs))}
    every_line = _lines(values)
    lines = [
        line
        for line in every_line
        if len({round(values[label], 6) for label in line}) > 1 and axis.shows(_last_setting(line[-1]))
    ]
    shown = _shown(values, every_line, lines)
    return {label: value for label, value in values.items() if label in shown}, lines


def _last_setting(label: str) -> str:
    """Return the key of the last thing that a variant sets, which is what a sweep appends; empty if there is none.

    >>> [_last_setting(label) for label in ("admm settle=0.2 rho=0.01", "asp [max_steps=50]", "admm teacher=dense")]
    ['rho', '[max_steps', '']
    """
    key, equals, _ = label.split()[-1].partition("=")
    return key if equals and key != "teacher" else ""


def _lines(labels: Collection[str]) -> list[list[str]]:
    """Return variants that differ in their last setting alone, together with the one that lacks it.

    >>> _lines(["asp", "admm", "admm rho=1", "admm rho=2", "admm settle=0.1"])
    [['admm', 'admm rho=1', 'admm rho=2'], ['admm', 'admm settle=0.1']]
    """
    lines: dict[tuple[str, str], list[str]] = {}
    for label in labels:
        if _last_setting(label):
            base = " ".join(label.split()[:-1])
            lines.setdefault((base, _last_setting(label)), [base] if base in labels else []).append(label)
    return [line for line in lines.values() if len(line) > 1]


def _shown(labels: Iterable[str], every_line: Sequence[list[str]], lines: Sequence[list[str]]) -> set[str]:
    """Return the variants on the drawn lines, and those that do not clutter them.

    Sweeps whose line is not drawn are left out. Beside a sweep, only variants without settings are shown.

    >>> labels = ["asp", "asp scores=alps", "ste", "ste refresh=1", "ste refresh=2"]
    >>> sorted(_shown(labels, _lines(labels), []))
    ['asp', 'asp scores=alps', 'ste']
    >>> sorted(_shown(labels, _lines(labels), [["ste", "ste refresh=1", "ste refresh=2"]]))
    ['asp', 'ste', 'ste refresh=1', 'ste refresh=2']
    """
    drawn = {label for line in lines for label in line}
    swept = {label for line in every_line if len(line) > 2 for label in line if _last_setting(label)}
    return drawn | {label for label in labels if label not in swept and not (_last_setting(label) and drawn & swept)}


def _legend_names(labels: Sequence[str]) -> dict[str, str]:
    """Return the name of each variant in the legend; variants on one line share the name of its base.

    >>> list(_legend_names(["admm", "admm rho=1", "admm start=A", "admm start=A rho=1", "admm start=B"]).values())
    ['admm', 'admm', 'admm start=A', 'admm start=A', 'admm']
    >>> _legend_names(["mask-decay grad=ste", "admm teacher=dense"])
    {'mask-decay grad=ste': 'mask-decay', 'admm teacher=dense': 'admm taught'}
    """
    names = {label: label.split()[0] + (" taught" if "teacher=dense" in label else "") for label in labels}
    lines = [(" ".join(line[-1].split()[:-1]), line) for line in _lines(labels)]
    bases = {base for base, _ in lines}
    for base, line in lines:
        names.update({label: label if label in bases else base for label in line})
    return names
