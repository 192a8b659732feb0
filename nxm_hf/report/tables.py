"""The tables of a training report."""

import json
from collections.abc import Sequence
from html import escape

from nxm_hf.report.flops import cost
from nxm_hf.report.html import Html, html_table, share_bar
from nxm_hf.report.run import Run
from nxm_hf.report.svg import sparkline
from nxm_hf.storage.verify import Verification

NO_VALUE = "-"
TRAINER_SETTINGS = ("max_steps", "num_train_epochs", "train_batch_size", "logging_steps", "eval_steps", "save_steps")


def summary_table(runs: Sequence[Run]) -> str:
    """Return a table with a column for each run and a row for each quantity that at least one of them has.

    Args:
        runs: The runs to compare.
    """
    rows = [
        ["recipe", *(str(run.config.get("recipe", "dense")) for run in runs)],
        ["pattern", *(_text(run.config.get("pattern", "dense")) for run in runs)],
        ["steps", *(f"{run.steps} of {run.state.get('max_steps', '?')}" for run in runs)],
        ["last training loss", *(_number(run.last("loss")) for run in runs)],
    ]
    for key in dict.fromkeys(key for run in runs for key in run.evaluations):
        rows.append([f"last evaluation {key.removeprefix('eval_')}", *(_number(run.last(key)) for run in runs)])
    rows += [
        ["best metric", *(_number(run.state.get("best_metric")) for run in runs)],
        ["last residual", *(_number(run.last("nxm/residual")) for run in runs)],
        ["last mask similarity", *(_number(run.last("nxm/mask_similarity")) for run in runs)],
        ["density of the final model", *(_density(run) for run in runs)],
        ["verified", *(_verdict(run.verified) for run in runs)],
    ]
    known = [row for row in rows if any(cell != NO_VALUE for cell in row[1:])]
    return html_table(["", *(run.name for run in runs)], known, row_headers=1)


def layer_table(run: Run) -> str:
    """Return what AnalysisCallback recorded of each layer, or an empty text if it recorded nothing.

    Args:
        run: The run.
    """
    if not run.analysis:
        return ""
    residuals = run.recorded("residual")
    steps = f"from step {residuals[0][0]} to {residuals[-1][0]}"
    last_densities, last_flip_rates = run.recorded("density")[-1][1], run.recorded("flips")[-1][1]
    rows = []
    for number, (name, layer) in enumerate(run.analysis["layers"].items()):
        course = [values[number] for _, values in residuals]
        row = [
            name,
            layer["role"],
            "x".join(map(str, layer["shape"])),
            layer["pattern"],
            _number(course[0]),
            Html(sparkline(course, f"Residual of {name}, {steps}")),
            _number(course[-1]),
            _number(last_densities[number]),
            _number(last_flip_rates[number]),
        ]
        rows.append(row)
    residual_columns = ("residual first", "course", "last")
    header = ("layer", "role", "shape", "pattern", *residual_columns, "density in training", "flip rate")
    return html_table(header, rows, row_headers=1)


def role_table(run: Run) -> str:
    """Return the density of each role: of the final model or, if none was saved, of the last recorded masks.

    Args:
        run: The run.
    """
    if isinstance(run.verified, Verification):
        layers = [(layer.role, layer.numel, layer.density) for layer in run.verified.layers]
    elif run.analysis:
        recorded = zip(run.analysis["layers"].values(), run.recorded("density")[-1][1], strict=True)
        layers = [(layer["role"], layer["shape"][0] * layer["shape"][1], density) for layer, density in recorded]
    else:
        return ""
    rows = []
    for role in dict.fromkeys(role for role, _, _ in layers):
        sizes = [(numel, density) for other, numel, density in layers if other == role]
        total = sum(numel for numel, _ in sizes)
        density = sum(numel * density for numel, density in sizes) / total
        rows.append([role, str(len(sizes)), f"{total:,}", _number(density), share_bar(density)])
    return html_table(("role", "layers", "weights", "density", ""), rows, row_headers=1)


def settings_table(run: Run) -> str:
    """Return the sparsity config of a run without its layers, and settings of its Trainer.

    Args:
        run: The run.
    """
    settings = {key: value for key, value in run.config.items() if key != "layers"}
    settings |= {f"Trainer: {key}": run.state[key] for key in TRAINER_SETTINGS if run.state.get(key) is not None}
    return html_table(("name", "value"), [[key, _text(value)] for key, value in settings.items()], row_headers=1)


def cost_table(run: Run) -> str:
    """Return the FLOPs of a training beside those of dense training, or a sentence why they are not known.

    Args:
        run: The run.
    """
    try:
        spent = cost(run)
    except (OSError, ValueError) as error:
        return f'<p class="none">{escape(" ".join(str(error).split()))}</p>'
    rows = [
        ["steps", f"{spent.steps} of {spent.planned}"],
        ["pruned layers, of their dense FLOPs", _number(spent.flops.ratio)],
        ["all that was counted, of dense training", _number(spent.flops.overall)],
        ["FLOPs by the Trainer's count, dense", _number(spent.counted or None)],
        ["FLOPs by this account", _number(spent.spent if spent.counted else None)],
    ]
    note = f'<p class="note">{escape(" ".join(spent.flops.conventions))}</p>'
    return html_table(("", ""), [row for row in rows if row[1] != NO_VALUE], row_headers=1) + note


def environment_table(run: Run) -> str:
    """Return the versions and the device of a training, or an empty text if they were not recorded.

    Args:
        run: The run.
    """
    environment = run.analysis.get("environment", {})
    rows = [[part, str(version)] for part, version in environment.items()]
    return html_table(("part", "version"), rows, row_headers=1) if rows else ""


def verification_table(run: Run) -> str:
    """Return the verification of the final model, as `nxm verify` prints it.

    Args:
        run: The run.
    """
    if not isinstance(run.verified, Verification):
        return f'<p class="none">{escape(run.verified)}</p>'
    rows = [
        [
            layer.name,
            layer.role,
            f"{layer.shape[0]}x{layer.shape[1]}",
            str(layer.pattern),
            f"{layer.density:.4f}",
            " ".join(layer.problems) or "ok",
        ]
        for layer in run.verified.layers
    ]
    verdict = f"{len(rows)} layers, density {run.verified.density:.4f}: {_verdict(run.verified)}"
    table = html_table(("layer", "role", "shape", "pattern", "density", "verdict"), rows, row_headers=1)
    return f'<p class="{"good" if run.verified.ok else "bad"}">{escape(verdict)}</p>{table}'


def _verdict(verified: Verification | str) -> str:
    if isinstance(verified, str):
        return NO_VALUE
    return "ok" if verified.ok else f"{len(verified.problems)} problems"


def _density(run: Run) -> str:
    return f"{run.verified.density:.4f}" if isinstance(run.verified, Verification) else NO_VALUE


def _number(value: float | None) -> str:
    return NO_VALUE if value is None else f"{value:.4g}"


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
