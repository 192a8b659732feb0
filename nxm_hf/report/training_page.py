"""The page: sections, figures and tables as one HTML text that refers to no other file."""

from collections.abc import Sequence
from html import escape

from nxm_hf import recipes
from nxm_hf._version import __version__
from nxm_hf.report.charts import Chart, charts
from nxm_hf.report.run import Run
from nxm_hf.report.stylesheet import STYLE
from nxm_hf.report.svg import draw, legend, picture
from nxm_hf.report.tables import costs, environments, grid, layers, roles, settings, summary, verdicts

NO_SAMPLES = "Nothing was recorded. Add AnalysisCallback() to the callbacks of the next training."


def page(runs: Sequence[Run]) -> str:
    """The report of these runs."""
    names = ", ".join(run.name for run in runs)
    drawn = charts(runs)
    curves = [_figure(chart) for chart in drawn if chart.section == "curves"]
    weights = [_figure(chart) for chart in drawn if chart.section == "weights"] + _excerpts(runs)
    parts = [
        _section("summary", "Summary", summary(runs)),
        _section("curves", "Curves", _cards(curves) + _unlogged(runs)),
        _section("layers", "Layers", _or(_each(runs, layers), NO_SAMPLES)),
        _section("density", "Density by role", _or(_each(runs, roles), "No layer is on record as sparse.")),
        _section("weights", "Weights", _or(_cards(weights), NO_SAMPLES)),
        _section("flops", "Training FLOPs", _each(runs, costs)),
        _section("config", "Config", _each(runs, settings) + _papers(runs)),
        _section("environment", "Environment", _or(_each(runs, environments), NO_SAMPLES)),
        _section("verification", "Verification of the final model", _each(runs, verdicts)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Training report: {escape(names)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<header>\n"
        f"<h1>{escape(names)}</h1>\n<p>Training report, drawn by nxm_hf {__version__}</p>\n</header>\n<main>\n"
        f"{''.join(parts)}</main>\n</body>\n</html>\n"
    )


def _section(name: str, title: str, body: str) -> str:
    return f'<section id="{name}">\n<h2>{title}</h2>\n{body}\n</section>\n'


def _or(body: str, otherwise: str) -> str:
    return body or f'<p class="none">{otherwise}</p>'


def _cards(figures: list[str]) -> str:
    return f'<div class="cards">{"".join(figures)}</div>' if figures else ""


def _each(runs: Sequence[Run], part) -> str:
    """A part of the page for each run that has it, under the run's name where there are several."""
    found = [(run, body) for run in runs if (body := part(run))]
    if len(runs) == 1:
        return "".join(body for _, body in found)
    sides = "".join(f"<div><h3>{escape(run.name)}</h3>{body}</div>" for run, body in found)
    return f'<div class="sides">{sides}</div>' if sides else ""


def _figure(chart: Chart) -> str:
    note = f'<p class="note">{escape(chart.note)}</p>' if chart.note else ""
    return (
        f"<figure><figcaption>{escape(chart.title)}</figcaption>{draw(chart)}{legend(chart)}{note}"
        f"<details><summary>Numbers</summary>{_numbers(chart)}</details></figure>"
    )


def _numbers(chart: Chart) -> str:
    """Every number that is drawn, in full."""
    table: dict[float, list[str]] = {}
    for order, line in enumerate(chart.lines):
        for x, y in zip(line.xs, line.ys, strict=False):  # of bars there is one edge more
            table.setdefault(x, [""] * len(chart.lines))[order] = repr(y)
    head = [f"{chart.x}{' (from)' if chart.bars else ''}", *(line.name for line in chart.lines)]
    return grid(head, [[repr(x), *table[x]] for x in sorted(table)])


def _excerpts(runs: Sequence[Run]) -> list[str]:
    found = []
    for run in (run for run in runs if run.analysis):
        layer, rows = run.analysis["excerpt"]["layer"], run.analysis["excerpt"]["rows"]
        title = "Mask excerpt" + (f" of {run.name}" if len(runs) > 1 else "")
        what = f"The first {len(rows)} outputs (down) by {len(rows[0])} inputs (across) of {layer}; coloured is kept."
        drawn = picture(rows, f"{title}: {what}")
        found.append(
            f'<figure><figcaption>{escape(title)}</figcaption>{drawn}<p class="note">{escape(what)}</p></figure>'
        )
    return found


def _unlogged(runs: Sequence[Run]) -> str:
    """What has no curve, and how the next training gets one."""
    missing = []
    if not any(run.points("loss") for run in runs):
        missing.append("No loss was logged: set logging_steps smaller than the number of steps.")
    if not any(run.evaluations for run in runs):
        missing.append('No evaluation was logged: train with eval_strategy="steps" or "epoch".')
    return "".join(f'<p class="none">{escape(text)}</p>' for text in missing)


def _papers(runs: Sequence[Run]) -> str:
    """What the recipes are and where they are from."""
    known = dict.fromkeys(run.config.get("recipe") for run in runs)
    lines = []
    for name in (name for name in known if name in recipes.names()):
        sentence, paper = recipes.describe(name)
        source, _, link = paper.rpartition(", ")
        cited = f'<a href="{escape(link)}">{escape(source)}</a>' if link.startswith("https://") else escape(paper)
        lines.append(f"<li><b>{escape(name)}</b>: {escape(sentence)} {cited}</li>")
    return f'<ul class="papers">{"".join(lines)}</ul>' if lines else ""
