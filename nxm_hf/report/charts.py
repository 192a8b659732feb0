"""The charts of training runs: their curves, and which runs share a chart.

Charts of the section "curves" come from the Trainer's log, and charts of "weights" from the records of
AnalysisCallback.
"""

from collections.abc import Sequence
from dataclasses import replace
from operator import mul

from nxm_hf.report.chart import Chart, Line, Mark
from nxm_hf.report.phases import phase_marks
from nxm_hf.report.run import Run
from nxm_hf.report.weight_charts import weight_charts


def charts(runs: Sequence[Run]) -> list[Chart]:
    """Return the charts that show a change.

    Args:
        runs: The runs; the curves of all are drawn into the same chart where they are comparable.
    """
    return [chart for chart in all_charts(runs) if not chart.is_constant]


def all_charts(runs: Sequence[Run]) -> list[Chart]:
    """Return all charts for which the runs have data.

    Args:
        runs: The runs.
    """
    evaluations = dict.fromkeys(key for run in runs for key in run.evaluations)
    drawn = [_curves(runs, "loss", "Training loss", "loss")]
    drawn += [_curves(runs, key, f"Evaluation: {_metric_label(key)}", _metric_label(key)) for key in evaluations]
    drawn += [
        _curves(runs, "learning_rate", "Learning rate", "learning rate"),
        _curves(runs, "nxm/mask_similarity", "Mask similarity", "share of kept weights kept again"),
        _curves(runs, "nxm/flip_rate", "Flip rate", "share of all weights that entered or left the mask"),
        _curves(runs, "nxm/residual", "Residual", "‖W - P(W)‖ / ‖W‖", logarithmic=True),
        _densities(runs),
    ]
    drawn += pair([(run.name, weight_charts(run)) for run in runs if run.analysis])
    return [chart for chart in drawn if chart.lines]


def _curves(runs: Sequence[Run], key: str, title: str, y: str, logarithmic: bool = False) -> Chart:
    """Return a chart of one key of the log, with a curve for each run that has it."""
    shown = [(run, points) for run in runs if (points := run.points(key))]
    lines = [Line(run.name, *map(tuple, zip(*points, strict=True))) for run, points in shown]
    logarithmic = logarithmic and all(value > 0 for line in lines for value in line.ys)
    marks = _marks([run for run, _ in shown])
    return Chart("curves", title, "step", y, tuple(lines), logarithmic=logarithmic, marks=marks)


def _marks(runs: Sequence[Run]) -> tuple[Mark, ...]:
    """Return the steps at which the phases of runs begin; once for all runs if they are the same."""
    phases = [phase_marks(run) for run in runs]
    if phases and all(each == phases[0] for each in phases):
        return tuple(Mark(step, label) for step, label in phases[0])
    return tuple(Mark(step, label, number) for number, each in enumerate(phases) for step, label in each)


def _densities(runs: Sequence[Run]) -> Chart:
    """Return the density of all masks together, for each run with a recording."""
    lines, recorded = [], [run for run in runs if run.analysis]
    for run in recorded:
        sizes = [layer["shape"][0] * layer["shape"][1] for layer in run.analysis["layers"].values()]
        steps, densities = zip(*run.recorded("density"), strict=True)
        kept = (sum(map(mul, sizes, values)) / sum(sizes) for values in densities)
        lines.append(Line(run.name, steps, tuple(kept)))
    return Chart("curves", "Density in training", "step", "fraction kept", tuple(lines), marks=_marks(recorded))


def pair(charts_of_runs: Sequence[tuple[str, Sequence[Chart]]]) -> list[Chart]:
    """Return the charts of runs, where charts with the same title and axes are joined to one.

    Args:
        charts_of_runs: The name and the charts of each run.
    """
    if len(charts_of_runs) == 1:
        return list(charts_of_runs[0][1])
    groups: dict[tuple[str, str, str], list[tuple[str, Chart]]] = {}
    for name, drawn in charts_of_runs:
        for chart in drawn:
            groups.setdefault((chart.title, chart.x, chart.y), []).append((name, chart))
    paired = []
    for (title, _, _), members in groups.items():
        lines = []
        for name, chart in members:
            others = [set(other.lines) for _, other in members]
            for line in chart.lines:
                common = len(members) > 1 and all(line in each for each in others)  # such as that of random walks
                lines.append(line if common else replace(line, name=f"{name}: {line.name}"))
        notes = {name: chart.note for name, chart in members if chart.note}
        same = len(set(notes.values())) <= 1
        note = next(iter(notes.values()), "") if same else " ".join(f"{name}: {text}" for name, text in notes.items())
        alone = f" of {', '.join(name for name, _ in members)}" if len(members) < len(charts_of_runs) else ""
        paired.append(replace(members[0][1], title=f"{title}{alone}", lines=tuple(dict.fromkeys(lines)), note=note))
    return paired


def _metric_label(key: str) -> str:
    """Return "rte accuracy" for "eval_rte_accuracy"."""
    return key.removeprefix("eval_").replace("_", " ")
