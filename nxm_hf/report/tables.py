"""Tables: the numbers of runs as HTML tables."""

import json
from collections.abc import Sequence
from html import escape

from nxm_hf.report.flops import cost
from nxm_hf.report.run import Run
from nxm_hf.report.svg import spark
from nxm_hf.storage.verify import Verification

NONE = "-"


def grid(head: Sequence[str], rows: Sequence[Sequence[str]], heads: int = 0) -> str:
    """A table in a frame that scrolls; `heads` is how many of the first columns are headings of their rows."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(f"<tr>{''.join(_cell(cell, n < heads) for n, cell in enumerate(row))}</tr>" for row in rows)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


class Drawn(str):
    """A cell that is HTML already."""


def _cell(cell: str, is_head: bool) -> str:
    text = cell if isinstance(cell, Drawn) else escape(cell)
    # A name may break after its dots, where the screen is narrow.
    breaking = text.replace(".", ".<wbr>").replace("_", "_<wbr>")
    return f'<th scope="row">{breaking}</th>' if is_head else f"<td>{text}</td>"


def summary(runs: Sequence[Run]) -> str:
    """A column for each run, a row for each quantity that any of them has."""
    keys = dict.fromkeys(key for run in runs for key in run.evaluations)
    rows = [
        ["recipe", *(str(run.config.get("recipe", "dense")) for run in runs)],
        ["pattern", *(_words(run.config.get("pattern", "dense")) for run in runs)],
        ["steps", *(f"{run.steps} of {run.state.get('max_steps', '?')}" for run in runs)],
        ["last training loss", *(_number(run.last("loss")) for run in runs)],
        *([f"last evaluation {key.removeprefix('eval_')}", *(_number(run.last(key)) for run in runs)] for key in keys),
        ["best metric", *(_number(run.state.get("best_metric")) for run in runs)],
        ["last residual", *(_number(run.last("nxm/residual")) for run in runs)],
        ["last mask similarity", *(_number(run.last("nxm/mask_similarity")) for run in runs)],
        ["density of the final model", *(_density(run) for run in runs)],
        ["verified", *(_verdict(run.verified) for run in runs)],
    ]
    return grid(["", *(run.name for run in runs)], [row for row in rows if any(c != NONE for c in row[1:])], heads=1)


def layers(run: Run) -> str:
    """What AnalysisCallback recorded of each layer."""
    if not run.analysis:
        return ""
    residuals, densities, flips = (run.sampled(key) for key in ("residual", "density", "flips"))
    rows = []
    for number, (name, layer) in enumerate(run.analysis["layers"].items()):
        course = [values[number] for _, values in residuals]
        about = f"Residual of {name}, from step {residuals[0][0]} to {residuals[-1][0]}"
        curve = Drawn(spark(course, about))
        size = "x".join(map(str, layer["shape"]))
        ends = [_number(course[0]), curve, _number(course[-1])]
        last = [_number(densities[-1][1][number]), _number(flips[-1][1][number])]
        rows.append([name, layer["role"], size, layer["pattern"], *ends, *last])
    head = ("layer", "role", "shape", "pattern", "residual first", "course", "last", "density in training", "flip rate")
    return grid(head, rows, heads=1)


def roles(run: Run) -> str:
    """Density by role: of the final model, or of the training where no model was saved."""
    if isinstance(run.verified, Verification):
        found = [(layer.role, layer.numel, layer.density) for layer in run.verified.layers]
    elif run.analysis:
        last = run.sampled("density")[-1][1]
        known = run.analysis["layers"].values()
        found = [(x["role"], x["shape"][0] * x["shape"][1], d) for x, d in zip(known, last, strict=True)]
    else:
        return ""
    rows = []
    for role in dict.fromkeys(role for role, _, _ in found):
        sizes = [(numel, density) for other, numel, density in found if other == role]
        density = sum(numel * d for numel, d in sizes) / sum(numel for numel, _ in sizes)
        bar = Drawn(f'<span class="bar"><span style="width:{density:.1%}"></span></span>')
        rows.append([role, str(len(sizes)), f"{sum(numel for numel, _ in sizes):,}", _number(density), bar])
    return grid(("role", "layers", "weights", "density", ""), rows, heads=1)


def settings(run: Run) -> str:
    """The run's config, but for the layers, which have a table of their own; and what the Trainer says of itself."""
    config = {key: value for key, value in run.config.items() if key != "layers"}
    known = ("max_steps", "num_train_epochs", "train_batch_size", "logging_steps", "eval_steps", "save_steps")
    trainer = {f"Trainer: {key}": run.state[key] for key in known if run.state.get(key) is not None}
    return grid(("name", "value"), [[key, _words(value)] for key, value in {**config, **trainer}.items()], heads=1)


def costs(run: Run) -> str:
    """What the training has cost, of what it would have dense."""
    try:
        found = cost(run)
    except (OSError, ValueError) as error:
        return f'<p class="none">{escape(" ".join(str(error).split()))}</p>'
    flops, counted = found.flops, found.counted
    rows = [
        ["steps", f"{found.steps} of {found.planned}"],
        ["pruned layers, of their dense FLOPs", _number(flops.ratio)],
        ["all that was counted, of dense training", _number(flops.overall)],
        ["FLOPs by the Trainer's count, dense", _number(counted or None)],
        ["FLOPs by this account", _number(found.spent if counted else None)],
    ]
    notes = f'<p class="note">{escape(" ".join(flops.conventions))}</p>'
    return grid(("", ""), [row for row in rows if row[1] != NONE], heads=1) + notes


def environments(run: Run) -> str:
    """What the training ran on."""
    words = run.analysis.get("environment", {})
    return grid(("part", "version"), [[key, str(value)] for key, value in words.items()], heads=1) if words else ""


def verdicts(run: Run) -> str:
    """The table of `nxm verify`."""
    if not isinstance(run.verified, Verification):
        return f'<p class="none">{escape(run.verified)}</p>'
    rows = [
        [x.name, x.role, f"{x.shape[0]}x{x.shape[1]}", str(x.pattern), f"{x.density:.4f}", " ".join(x.problems) or "ok"]
        for x in run.verified.layers
    ]
    verdict = f"{len(rows)} layers, density {run.verified.density:.4f}: {_verdict(run.verified)}"
    table = grid(("layer", "role", "shape", "pattern", "density", "verdict"), rows, heads=1)
    return f'<p class="{"good" if run.verified.ok else "bad"}">{escape(verdict)}</p>{table}'


def _verdict(verified: Verification | str) -> str:
    if isinstance(verified, str):
        return NONE
    return "ok" if verified.ok else f"{len(verified.problems)} problems"


def _density(run: Run) -> str:
    return f"{run.verified.density:.4f}" if isinstance(run.verified, Verification) else NONE


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.4g}"


def _words(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
