"""The page of training runs: its sections and figures."""

from collections.abc import Callable, Sequence
from html import escape

from nxm_hf import recipes
from nxm_hf.report.charts import charts
from nxm_hf.report.figure import figure
from nxm_hf.report.html import cards, html_page, section
from nxm_hf.report.run import Run
from nxm_hf.report.svg import draw_mask
from nxm_hf.report.tables import (
    cost_table,
    environment_table,
    layer_table,
    role_table,
    settings_table,
    summary_table,
    verification_table,
)

NOT_RECORDED = "Nothing was recorded. Add AnalysisCallback() to the callbacks of the next training."
NOT_SPARSE = "No layer is recorded as sparse."


def training_page(runs: Sequence[Run]) -> str:
    """Return the report of training runs as HTML.

    Args:
        runs: The runs, drawn into the same charts.
    """
    figures = charts(runs)
    curves = [figure(chart) for chart in figures if chart.section == "curves"]
    weights = [figure(chart) for chart in figures if chart.section == "weights"] + _mask_excerpts(runs)
    sections = [
        section("summary", "Summary", summary_table(runs)),
        section("curves", "Curves", cards(curves) + _missing_curves(runs)),
        section("layers", "Layers", _per_run(runs, layer_table) or _no_content(NOT_RECORDED)),
        section("density", "Density by role", _per_run(runs, role_table) or _no_content(NOT_SPARSE)),
        section("weights", "Weights", cards(weights) or _no_content(NOT_RECORDED)),
        section("flops", "Training FLOPs", _per_run(runs, cost_table)),
        section("config", "Config", _per_run(runs, settings_table) + _papers(runs)),
        section("environment", "Environment", _per_run(runs, environment_table) or _no_content(NOT_RECORDED)),
        section("verification", "Verification of the final model", _per_run(runs, verification_table)),
    ]
    return html_page("Training report", ", ".join(run.name for run in runs), "".join(sections))


def _no_content(sentence: str) -> str:
    return f'<p class="none">{escape(sentence)}</p>'


def _per_run(runs: Sequence[Run], content: Callable[[Run], str]) -> str:
    """Return the content of each run that has any; with several runs, under the name of each."""
    contents = [(run.name, html) for run in runs if (html := content(run))]
    if len(runs) == 1:
        return "".join(html for _, html in contents)
    columns = "".join(f"<div><h3>{escape(name)}</h3>{html}</div>" for name, html in contents)
    return f'<div class="sides">{columns}</div>' if columns else ""


def _mask_excerpts(runs: Sequence[Run]) -> list[str]:
    figures = []
    for run in runs:
        if run.analysis:
            layer, rows = run.analysis["excerpt"]["layer"], run.analysis["excerpt"]["rows"]
            title = "Mask excerpt" + (f" of {run.name}" if len(runs) > 1 else "")
            note = (
                f"The first {len(rows)} outputs (down) by {len(rows[0])} inputs (across) of {layer}; coloured is kept."
            )
            figures.append(
                f"<figure><figcaption>{escape(title)}</figcaption>{draw_mask(rows, f'{title}: {note}')}"
                f'<p class="note">{escape(note)}</p></figure>'
            )
    return figures


def _missing_curves(runs: Sequence[Run]) -> str:
    """Return sentences on how to log what has no curve."""
    sentences = []
    if not any(run.points("loss") for run in runs):
        sentences.append("No loss was logged: set logging_steps smaller than the number of steps.")
    if not any(run.evaluations for run in runs):
        sentences.append('No evaluation was logged: train with eval_strategy="steps" or "epoch".')
    return "".join(map(_no_content, sentences))


def _papers(runs: Sequence[Run]) -> str:
    """Return a list of the recipes of the runs, with links to their papers."""
    lines = []
    for name in dict.fromkeys(run.config.get("recipe") for run in runs):
        if name in recipes.names():
            sentence, paper = recipes.describe(name)
            source, _, link = paper.rpartition(", ")
            is_link = link.startswith("https://")
            cited = f'<a href="{escape(link)}">{escape(source)}</a>' if is_link else escape(paper)
            lines.append(f"<li><b>{escape(name)}</b>: {escape(sentence)} {cited}</li>")
    return f'<ul class="papers">{"".join(lines)}</ul>' if lines else ""
