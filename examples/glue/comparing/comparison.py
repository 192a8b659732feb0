"""The page of a comparison: tables of scores, differences and costs, in Markdown, with what they can and cannot say."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from run_glue import TASKS

from comparing.measures import (
    Difference,
    agreement,
    closed,
    constant_scores,
    deviation,
    geometric_mean,
    mean,
    mean_difference,
    metrics_of,
    paper_scores,
    score,
)
from comparing.notes import notes, of_seeds, on_the_average
from comparing.plots import MISSING, write_plots
from comparing.points import tried
from comparing.study import Part, Runs, Study
from comparing.tables import NONE, number, table

PAGE = "comparison.md"


def render(folder: Path) -> str:
    """Write `comparison.md` and its plots into a folder of results; returns the text of the page."""
    study = Study.read(folder)
    if not study.parts:
        raise ValueError(f"{folder} holds no finished cell to show; run compare.py without --render first.")
    pictures = [(part, write_plots(part, folder, number)) for number, part in enumerate(study.parts)]
    text = "\n\n".join(["# Comparison", *_made_by(study), *_missing(study)])
    for part, drawn in pictures:
        text += "\n\n" + "\n\n".join(_part(part, drawn))
    (folder / PAGE).write_text(text + "\n", encoding="utf-8")
    return text


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation; of one value, that value."""
    around = deviation(values)
    return number(mean(values)) + (f" ± {around:.4f}" if math.isfinite(around) else "")


def between(difference: Difference | None) -> str:
    """A difference with its interval."""
    if difference is None:
        return NONE
    interval = f" [{difference.low:+.4f}, {difference.high:+.4f}]" if math.isfinite(difference.low) else ""
    return f"{difference.mean:+.4f}{interval}"


def _made_by(study: Study) -> list[str]:
    return ["```shell\n" + "\n".join(study.commands) + "\n```"] if study.commands else []


def _missing(study: Study) -> list[str]:
    if not study.missing:
        return []
    lines = [
        ", ".join(
            [f"- {cell.task}, `{cell.recipe}`, seed {cell.seed}", *(f"{key}={value}" for key, value in cell.grid)]
        )
        for cell in study.missing
    ]
    return [
        f"**{len(lines)} cells are missing**; what follows is without them. The same command runs them.",
        "\n".join(lines),
    ]


def _part(part: Part, pictures: Sequence[Path]) -> list[str]:
    options = f" with `{' '.join(part.more)}`" if part.more else ""
    budget = f", for {part.budget} where no other budget is named" if part.budget else ""
    text = [f"## {part.model}", f"Trained{options}{budget}."]
    if len(part.tasks) > 1:
        text += ["### All tasks", _overall(part), *on_the_average(part)]
    for task in part.tasks:
        text += [
            f"### {task}",
            _scores(part, task),
            *of_seeds(part, task),
            _differences(part, task),
            _costs(part, task),
            *tried(part, task),
        ]
    text += ["### Notes", *notes(part)]
    return [*text, "### Plots", *_pictures(pictures)]


def _pictures(pictures: Sequence[Path]) -> list[str]:
    return [f"![{path.stem}]({path.name})" for path in pictures] or [MISSING]


# -- tables -------------------------------------------------------------------------------------------------------


def _overall(part: Part) -> str:
    """Means over tasks, of the arms that have all of them."""
    head = ["recipe", "mean of tasks", "gap closed", "above asp", "above dense", "geometric mean"]
    rows = []
    for label in part.labels:
        found = [part.find(task, label) for task in part.tasks]
        if None in found:
            rows.append([f"`{label}`", *[NONE] * 5])
            continue
        numbers = [value for runs in found for value in paper_scores(list(runs.records.values()))]
        rows.append(
            [
                f"`{label}`",
                number(_mean_of(found)),
                _share_closed(part, found),
                *(between(_mean_difference(part, found, recipe)) for recipe in ("asp", "dense")),
                number(100 * geometric_mean(numbers), ".2f"),
            ]
        )
    return table(head, rows)


def _share_closed(part: Part, found: Sequence[Runs]) -> str:
    """The gap closed, with a question mark where the gap itself may be chance."""
    share = _gap(part, found, "asp")
    whole = _mean_difference(part, [part.reference(runs, "asp") for runs in found], "dense") if share == share else None
    doubtful = whole is not None and not whole.high < 0
    return number(share, ".1%") + (" ?" if doubtful else "")


def _mean_of(found: Sequence[Runs]) -> float:
    return mean([mean(runs.scores) for runs in found])


def _gap(part: Part, found: Sequence[Runs], low: str) -> float:
    """The share of the way from one recipe up to dense, on the mean of the tasks and of the shared seeds."""
    ends = [(part.reference(runs, low), part.reference(runs, "dense")) for runs in found]
    if any(None in pair for pair in ends):
        return math.nan
    sides = []
    for runs, (bottom, top) in zip(found, ends, strict=True):
        seeds = set(runs.records) & set(bottom.records) & set(top.records)
        sides.append([mean([score(side.records[seed]) for seed in sorted(seeds)]) for side in (runs, bottom, top)])
    return closed(*(mean(column) for column in zip(*sides, strict=True)))


def _mean_difference(part: Part, found: Sequence[Runs], recipe: str) -> Difference | None:
    differences = [part.difference(runs, recipe) for runs in found]
    return None if None in differences else mean_difference(differences)


def _scores(part: Part, task: str) -> str:
    labels, names = TASKS[task].labels, list(metrics_of(task))
    has_small = any(runs.recipe == "small" for runs in part.of(task))
    head = ["recipe", "seeds", *names, *(f"recall of {label}" for label in labels), "agrees with dense", "gap closed"]
    rows = [_constant(part, task, len(head) - 2 - len(names) + has_small)]
    for runs in part.of(task):
        records = list(runs.records.values())
        rows.append(
            [
                f"`{runs.label}`",
                str(len(records)),
                *(spread([score(record, name) for record in records]) for name in names),
                *(number(mean([record["recall"][label] for record in records]), ".3f") for label in labels),
                number(_agreement(part, runs), ".3f"),
                _share_closed(part, [runs]),
                *([number(_gap(part, [runs], "small"), ".3f")] if has_small else []),
            ]
        )
    return table([*head, "f"] if has_small else head, rows)


def _constant(part: Part, task: str, more: int) -> list[str]:
    truth = part.truth(task)
    majority = {"accuracy": part.of(task)[0].first["majority"]}
    found = majority if truth is None else constant_scores(task, truth)
    return ["*the same answer always*", NONE, *(number(found.get(name)) for name in metrics_of(task)), *[NONE] * more]


def _agreement(part: Part, runs: Runs) -> float:
    dense = part.reference(runs, "dense")
    seeds = set(runs.records) & set(dense.records) if dense else set()
    return mean([agreement(runs.records[seed], dense.records[seed]) for seed in sorted(seeds)])


def _differences(part: Part, task: str) -> str:
    rows = [
        [f"`{runs.label}`", *(between(part.difference(runs, to)) for to in ("asp", "dense"))] for runs in part.of(task)
    ]
    return table([TASKS[task].best, "above asp", "above dense"], rows)


def _costs(part: Part, task: str) -> str:
    head = ["recipe", "training FLOPs", "mask similarity", "log10 masks per weight", "seconds", "with"]
    columns: list[Callable[[Runs], str]] = [
        lambda runs: f"`{runs.label}`",
        lambda runs: number(part.cost(runs), ".3f"),
        lambda runs: number(runs.similarity),
        lambda runs: number(part.diversity(runs), ".3f"),
        lambda runs: number(runs.seconds, ".0f"),
        lambda runs: ", ".join(f"{key}={value}" for key, value in runs.first["grid"]) or NONE,
    ]
    return table(head, [[column(runs) for column in columns] for runs in part.of(task)])
