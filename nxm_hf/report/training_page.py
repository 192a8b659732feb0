"""The page of training runs: its sections and figures."""

from collections.abc import Sequence

from markupsafe import Markup

from nxm_hf import recipes
from nxm_hf.report.axes import tick_label
from nxm_hf.report.chart import Chart
from nxm_hf.report.charts import all_charts
from nxm_hf.report.figure import figure
from nxm_hf.report.html import PARTS, cards, html_page, paragraphs, section
from nxm_hf.report.run import Run
from nxm_hf.report.settings_tables import NOT_WRITTEN, environment_table, settings_table
from nxm_hf.report.svg import draw_mask
from nxm_hf.report.tables import cost_table, layer_table, role_table, summary_table, verification_table

NOT_RECORDED = "Nothing was recorded. Add AnalysisCallback() to the callbacks of the next training."
NOT_SPARSE = "No layer is recorded as sparse."


def training_page(runs: Sequence[Run]) -> str:
    """Return the report of training runs as HTML.

    Args:
        runs: The runs, drawn into the same charts.
    """
    figures = all_charts(runs)
    changing = [chart for chart in figures if not chart.is_constant]
    curves = [figure(chart) for chart in changing if chart.section == "curves"]
    weights = [figure(chart) for chart in changing if chart.section == "weights"] + _mask_excerpts(runs)
    constant = _constant([chart for chart in figures if chart.is_constant])
    sections = [
        section("summary", "Summary", summary_table(runs)),
        section("curves", "Curves", cards(curves), constant, _missing_curves(runs)),
        section("layers", "Layers", layer_table(runs) or _no_content(NOT_RECORDED)),
        section("density", "Density by role", role_table(runs) or _no_content(NOT_SPARSE)),
        section("weights", "Weights", cards(weights) or _no_content(NOT_RECORDED)),
        section("flops", "Training FLOPs", cost_table(runs)),
        section("settings", "Settings", settings_table(runs), _unwritten(runs), _papers(runs)),
        section("environment", "Environment", environment_table(runs) or _no_content(NOT_RECORDED)),
        section("verification", _verified_title(runs), verification_table(runs)),
    ]
    return html_page("Training report", ", ".join(run.name for run in runs), sections)


def _no_content(*sentences: str) -> Markup:
    return paragraphs("none", sentences)


def _verified_title(runs: Sequence[Run]) -> str:
    """Return the heading, which speaks of a final model only if every training has one."""
    final = all(run.is_finished and run.model == run.folder for run in runs)
    return f"Verification of the {'final' if final else 'newest saved'} model{'s' if len(runs) > 1 else ''}"


def _unwritten(runs: Sequence[Run]) -> Markup:
    return _no_content(*(f"{run.name} {NOT_WRITTEN}" for run in runs if not run.facts))


def _constant(figures: Sequence[Chart]) -> Markup:
    """Return a sentence with the values of the charts that are not drawn because nothing changes in them."""
    values = [
        f"{chart.title} ({', '.join(f'{line.name}: {tick_label(line.ys[0])}' for line in chart.lines)})"
        for chart in figures
    ]
    return paragraphs("note", [f"Not drawn, because constant: {'; '.join(values)}."] if values else [])


def _mask_excerpts(runs: Sequence[Run]) -> list[Markup]:
    figures = []
    for run in runs:
        if run.analysis:
            layer, rows = run.analysis["excerpt"]["layer"], run.analysis["excerpt"]["rows"]
            title = "Mask excerpt" + (f" of {run.name}" if len(runs) > 1 else "")
            note = (
                f"The first {len(rows)} outputs (down) by {len(rows[0])} inputs (across) of {layer}; coloured is kept."
            )
            figures.append(PARTS.figure(title, draw_mask(rows, f"{title}: {note}"), [], note, ""))
    return figures


def _missing_curves(runs: Sequence[Run]) -> Markup:
    """Return sentences that say how to log the missing curves."""
    sentences = []
    if not any(run.points("loss") for run in runs):
        sentences.append("No loss was logged: set logging_steps smaller than the number of steps.")
    if not any(run.evaluations for run in runs):
        sentences.append('No evaluation was logged: train with eval_strategy="steps" or "epoch".')
    return _no_content(*sentences)


def _papers(runs: Sequence[Run]) -> Markup:
    """Return a list of the recipes of the runs, with links to their papers."""
    papers = []
    for name in dict.fromkeys(run.config.get("recipe") for run in runs):
        if name in recipes.names():
            sentence, paper = recipes.describe(name)
            source, _, link = paper.rpartition(", ")
            papers.append((name, sentence, *((source, link) if link.startswith("https://") else (paper, ""))))
    return PARTS.papers(papers) if papers else Markup()
