"""The tables of a training report."""

from collections.abc import Sequence

from markupsafe import Markup

from nxm_hf.report.flops import cost
from nxm_hf.report.html import html_table, paragraphs, share_bar
from nxm_hf.report.run import Run
from nxm_hf.report.settings_tables import as_text
from nxm_hf.report.side_by_side import NO_VALUE, Cells, quantities, rows_by_name
from nxm_hf.report.svg import sparkline
from nxm_hf.storage.verify import Verification, VerifiedLayer


def summary_table(runs: Sequence[Run]) -> Markup:
    """Return a table with a column for each run and a row for each quantity that at least one of them has.

    Args:
        runs: The runs to compare.
    """
    rows = [
        ["state", *(run.progress for run in runs)],
        ["recipe", *(str(run.config.get("recipe", "dense")) for run in runs)],
        ["pattern", *(as_text(run.config.get("pattern", "dense")) for run in runs)],
        ["last training loss", *(_number(run.last("loss")) for run in runs)],
    ]
    for key in dict.fromkeys(key for run in runs for key in run.evaluations):
        rows.append([f"last evaluation {key.removeprefix('eval_')}", *(_number(run.last(key)) for run in runs)])
    rows += [
        ["best metric", *(_number(run.state.get("best_metric")) for run in runs)],
        ["last residual", *(_number(run.last("nxm/residual")) for run in runs)],
        ["last mask similarity", *(_number(run.last("nxm/mask_similarity")) for run in runs)],
        ["newest saved model", *(run.model_name if run.model else NO_VALUE for run in runs)],
        ["its density", *(_density(run) for run in runs)],
        ["its verification", *(_verdict(run.verified) for run in runs)],
    ]
    known = [row for row in rows if any(cell != NO_VALUE for cell in row[1:])]
    return html_table(["", *(run.name for run in runs)], known, row_headers=1)


def layer_table(runs: Sequence[Run]) -> Markup:
    """Return the records of AnalysisCallback by layer, or an empty text if there are no records.

    Args:
        runs: The runs, side by side.
    """
    recorded = [run for run in runs if run.analysis]
    first = ("residual first",) if len(recorded) == 1 else ()  # several runs have less room
    columns = ("pattern", *first, "residual course", "last", "density in training", "flip rate")
    rows = [_recorded_layers(run, bool(first)) for run in recorded]
    return rows_by_name([run.name for run in recorded], ("layer", "role", "shape"), columns, rows)


def _recorded_layers(run: Run, with_first: bool) -> dict[str, tuple[Cells, Cells]]:
    residuals = run.recorded("residual")
    steps = f"from step {residuals[0][0]} to {residuals[-1][0]}"
    last_densities, last_flip_rates = run.recorded("density")[-1][1], run.recorded("flips")[-1][1]
    rows: dict[str, tuple[Cells, Cells]] = {}
    for number, (name, layer) in enumerate(run.analysis["layers"].items()):
        course = [values[number] for _, values in residuals]
        cells = (
            layer["pattern"],
            *([_number(course[0])] if with_first else []),
            sparkline(course, f"Residual of {name}, {steps}"),
            _number(course[-1]),
            _number(last_densities[number]),
            _number(last_flip_rates[number]),
        )
        rows[name] = ((layer["role"], "x".join(map(str, layer["shape"]))), cells)
    return rows


def role_table(runs: Sequence[Run]) -> Markup:
    """Return the density of each role: of the newest model or, if none was saved, of the last recorded masks.

    Args:
        runs: The runs, side by side.
    """
    known = [(run.name, rows) for run in runs if (rows := _roles(run))]
    header, names = ("role", "layers", "weights"), [name for name, _ in known]
    return rows_by_name(names, header, ("density", ""), [rows for _, rows in known])


def _roles(run: Run) -> dict[str, tuple[Cells, Cells]]:
    if isinstance(run.verified, Verification):
        layers = [(layer.role, layer.numel, layer.density) for layer in run.verified.layers]
    elif run.analysis:
        recorded = zip(run.analysis["layers"].values(), run.recorded("density")[-1][1], strict=True)
        layers = [(layer["role"], layer["shape"][0] * layer["shape"][1], density) for layer, density in recorded]
    else:
        return {}
    rows: dict[str, tuple[Cells, Cells]] = {}
    for role in dict.fromkeys(role for role, _, _ in layers):
        sizes = [(numel, density) for other, numel, density in layers if other == role]
        total = sum(numel for numel, _ in sizes)
        density = sum(numel * density for numel, density in sizes) / total
        rows[role] = ((str(len(sizes)), f"{total:,}"), (_number(density), share_bar(density)))
    return rows


def cost_table(runs: Sequence[Run]) -> Markup:
    """Return the FLOPs of trainings beside those of dense training. A training with unknown FLOPs gets a sentence.

    Args:
        runs: The runs, side by side.
    """
    columns: list[dict[str, str]] = []
    notes, unknown = [], []
    for run in runs:
        try:
            spent = cost(run)
        except (OSError, ValueError) as error:
            columns.append({})
            unknown.append(" ".join(str(error).split()))
            continue
        rows = {
            "steps": f"{spent.steps} of {spent.planned}",
            "pruned layers, of their dense FLOPs": _number(spent.flops.ratio),
            "all that was counted, of dense training": _number(spent.flops.overall),
            "FLOPs by the Trainer's count, dense": _number(spent.counted or None),
            "FLOPs by this account": _number(spent.spent if spent.counted else None),
        }
        columns.append({key: value for key, value in rows.items() if value != NO_VALUE})
        notes.append(" ".join(spent.flops.conventions))
    table = quantities([run.name for run in runs], columns)
    return table + paragraphs("note", list(dict.fromkeys(notes))) + paragraphs("none", unknown)


def verification_table(runs: Sequence[Run]) -> Markup:
    """Return the verification of the newest saved models, as `nxm verify` prints it.

    Args:
        runs: The runs, side by side.
    """
    lines, known = Markup(), []
    for run in runs:
        name = f"{run.name}: " if len(runs) > 1 else ""
        state = "" if run.is_finished else f" (the training is {run.progress})"
        if isinstance(run.verified, str):
            lines += paragraphs("none", [f"{name}{run.verified}"])
            continue
        found = run.verified
        verdict = f"{len(found.layers)} layers, density {found.density:.4f}: {_verdict(found)}"
        lines += paragraphs("good" if found.ok else "bad", [f"{name}{run.model_name}{state}, {verdict}"])
        known.append((run.name, {layer.name: _verified_cells(layer) for layer in found.layers}))
    header, names = ("layer", "role", "shape"), [name for name, _ in known]
    columns = ("pattern", "density", "verdict")
    return lines + rows_by_name(names, header, columns, [rows for _, rows in known])


def _verified_cells(layer: VerifiedLayer) -> tuple[Cells, Cells]:
    shape = f"{layer.shape[0]}x{layer.shape[1]}"
    return (layer.role, shape), (str(layer.pattern), f"{layer.density:.4f}", " ".join(layer.problems) or "ok")


def _verdict(verified: Verification | str) -> str:
    if isinstance(verified, str):
        return NO_VALUE
    return "ok" if verified.ok else f"{len(verified.problems)} problems"


def _density(run: Run) -> str:
    return f"{run.verified.density:.4f}" if isinstance(run.verified, Verification) else NO_VALUE


def _number(value: float | None) -> str:
    return NO_VALUE if value is None else f"{value:.4g}"
