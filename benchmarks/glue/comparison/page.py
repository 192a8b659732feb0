"""The page of a comparison: tables of scores, differences and costs in Markdown, with notes and plots."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from nxm_hf.config.hub import write_text
from nxm_hf.text import markdown_code, markdown_text

from .example_scripts import TASKS
from .grid_points import choice_section
from .page_notes import note_on_average, note_on_seeds, notes
from .plots import NO_PLOTS, write_plots
from .published import published_section
from .results import ComparisonResults, ModelResults, Runs
from .statistics import (
    Difference,
    agreement,
    constant_scores,
    deviation,
    gap_closed,
    geometric_mean,
    mean,
    mean_difference,
    metrics_of,
    paper_scores,
    score,
)
from .tables import NONE, format_number, table

PAGE = "comparison.md"


def render(folder: Path) -> str:
    """Write `comparison.md` and its plots into a folder of results.

    Args:
        folder: The output directory of a comparison.

    Returns:
        The text of the page.

    Raises:
        ValueError: The folder has no finished trial.
    """
    results = ComparisonResults.read(folder)
    if not results.models:
        raise ValueError(f"{folder} holds no finished trial to show; run compare.py without --render first.")
    plots = [write_plots(model, folder, number) for number, model in enumerate(results.models)]
    sections = ["# Comparison", *_commands(results), *_missing_trials(results)]
    for model, files in zip(results.models, plots, strict=True):
        sections += _model_section(model, files)
    text = "\n\n".join(sections)
    write_text(folder / PAGE, text + "\n")
    return text


def format_scores(values: Sequence[float]) -> str:
    """Return mean ± standard deviation as text, or the value itself if there is only one."""
    spread = deviation(values)
    return format_number(mean(values)) + (f" ± {spread:.4f}" if math.isfinite(spread) else "")


def format_difference(difference: Difference | None) -> str:
    """Return a difference with its interval as text, or a dash for None."""
    if difference is None:
        return NONE
    interval = f" [{difference.low:+.4f}, {difference.high:+.4f}]" if math.isfinite(difference.low) else ""
    return f"{difference.mean:+.4f}{interval}"


def _commands(results: ComparisonResults) -> list[str]:
    fence, text = "```", "\n".join(results.commands)
    while fence in text:
        fence += "`"
    return [f"{fence}shell\n{text}\n{fence}"] if results.commands else []


def _missing_trials(results: ComparisonResults) -> list[str]:
    if not results.missing:
        return []
    lines = [
        ", ".join(
            [
                f"- {markdown_text(trial.task)}, {markdown_code(trial.recipe)}, seed {trial.seed}",
                *(markdown_text(f"{key}={value}") for key, value in trial.grid),
            ]
        )
        for trial in results.missing
    ]
    summary = f"**{len(lines)} trials are missing**; what follows is without them. The same command runs them."
    return [summary, "\n".join(lines)]


def _model_section(results: ModelResults, plots: Sequence[Path]) -> list[str]:
    options = f" with {markdown_code(' '.join(results.more))}" if results.more else ""
    budget = f", for {results.budget} where no other budget is named" if results.budget else ""
    text = [f"## {markdown_text(results.model)}", f"Trained{options}{budget}."]
    if len(results.tasks) > 1:
        text += ["### All tasks", _table_of_all_tasks(results), *note_on_average(results)]
    text += published_section(results)
    for task in results.tasks:
        text += [
            f"### {task}",
            _table_of_scores(results, task),
            *note_on_seeds(results, task),
            _table_of_differences(results, task),
            _table_of_costs(results, task),
            *choice_section(results, task),
        ]
    text += ["### Notes", *notes(results)]
    return [*text, "### Plots", *([f"![{path.stem}]({path.name})" for path in plots] or [NO_PLOTS])]


# -- tables -------------------------------------------------------------------------------------------------------


def _table_of_all_tasks(results: ModelResults) -> str:
    """Return means over tasks, for the variants that have all of them."""
    head = ["recipe", "mean of tasks", "gap closed", "above asp", "above dense", "geometric mean"]
    rows = []
    for label in results.labels:
        by_task = [results.find(task, label) for task in results.tasks]
        variant = [runs for runs in by_task if runs]
        if len(variant) < len(by_task):
            rows.append([markdown_code(label), *[NONE] * 5])
            continue
        numbers = [value for runs in variant for value in paper_scores(list(runs.records.values()))]
        rows.append(
            [
                markdown_code(label),
                format_number(mean([mean(runs.scores) for runs in variant])),
                _gap_cell(results, variant),
                format_difference(_mean_difference(results, variant, "asp")),
                format_difference(_mean_difference(results, variant, "dense")),
                format_number(100 * geometric_mean(numbers), ".2f"),
            ]
        )
    return table(head, rows)


def _gap_cell(results: ModelResults, variant: Sequence[Runs]) -> str:
    """Return the gap closed from asp to dense, with a question mark if the gap itself may be chance."""
    fraction = _gap_closed(results, variant, "asp")
    if math.isnan(fraction):
        return format_number(fraction, ".1%")
    pruned = [runs for runs in (results.reference(runs, "asp") for runs in variant) if runs]
    gap = _mean_difference(results, pruned, "dense")
    doubtful = gap is not None and not gap.high < 0
    return format_number(fraction, ".1%") + (" ?" if doubtful else "")


def _gap_closed(results: ModelResults, variant: Sequence[Runs], low: str) -> float:
    """Return the fraction of the way from one recipe up to dense, on the mean of the tasks and of the shared seeds."""
    columns: list[list[float]] = []
    for runs in variant:
        bottom, top = results.reference(runs, low), results.reference(runs, "dense")
        if bottom is None or top is None:
            return math.nan
        seeds = sorted(set(runs.records) & set(bottom.records) & set(top.records))
        columns.append([mean([score(side.records[seed]) for seed in seeds]) for side in (runs, bottom, top)])
    return gap_closed(*(mean(values) for values in zip(*columns, strict=True)))


def _mean_difference(results: ModelResults, variant: Sequence[Runs], recipe: str) -> Difference | None:
    differences = [results.difference(runs, recipe) for runs in variant]
    known = [difference for difference in differences if difference]
    return mean_difference(known) if len(known) == len(differences) else None


def _table_of_scores(results: ModelResults, task: str) -> str:
    labels, metrics = TASKS[task].labels, metrics_of(task)
    has_small = any(runs.recipe == "small" for runs in results.of(task))
    head = ["recipe", "seeds", *metrics, *(f"recall of {label}" for label in labels), "agrees with dense", "gap closed"]
    rows = [_constant_row(results, task, len(head) - 2 - len(metrics) + has_small)]
    for runs in results.of(task):
        records = list(runs.records.values())
        rows.append(
            [
                markdown_code(runs.label),
                str(len(records)),
                *(format_scores([score(record, metric) for record in records]) for metric in metrics),
                *(format_number(mean([record["recall"][label] for record in records]), ".3f") for label in labels),
                format_number(_agreement(results, runs), ".3f"),
                _gap_cell(results, [runs]),
                *([format_number(_gap_closed(results, [runs], "small"), ".3f")] if has_small else []),
            ]
        )
    return table([*head, "f"] if has_small else head, rows)


def _constant_row(results: ModelResults, task: str, empty: int) -> list[str]:
    """Return the row of a model that gives the same answer to every question."""
    truth = results.truth(task)
    majority = {"accuracy": results.of(task)[0].first["majority"]}
    scores = majority if truth is None else constant_scores(task, truth)
    cells = [format_number(scores.get(metric)) for metric in metrics_of(task)]
    return ["*the same answer always*", NONE, *cells, *[NONE] * empty]


def _agreement(results: ModelResults, runs: Runs) -> float:
    dense = results.reference(runs, "dense")
    if dense is None:
        return math.nan
    seeds = sorted(set(runs.records) & set(dense.records))
    return mean([agreement(runs.records[seed], dense.records[seed]) for seed in seeds])


def _table_of_differences(results: ModelResults, task: str) -> str:
    rows = [
        [
            markdown_code(runs.label),
            *(format_difference(results.difference(runs, recipe)) for recipe in ("asp", "dense")),
        ]
        for runs in results.of(task)
    ]
    return table([TASKS[task].best, "above asp", "above dense"], rows)


def _table_of_costs(results: ModelResults, task: str) -> str:
    columns: dict[str, Callable[[Runs], str]] = {
        "recipe": lambda runs: markdown_code(runs.label),
        "training FLOPs": lambda runs: format_number(results.cost(runs), ".3f"),
        "mask similarity": lambda runs: format_number(runs.similarity),
        "log10 masks per weight": lambda runs: format_number(results.diversity(runs), ".3f"),
        "seconds": lambda runs: format_number(runs.seconds, ".0f"),
        "with": lambda runs: ", ".join(markdown_text(f"{key}={value}") for key, value in runs.first["grid"]) or NONE,
    }
    rows = [[column(runs) for column in columns.values()] for runs in results.of(task)]
    return table(list(columns), rows)
