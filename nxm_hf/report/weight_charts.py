"""Charts of the weights and masks of a run, as AnalysisCallback recorded them."""

from collections import Counter
from itertools import pairwise

import torch
from torch import Tensor

from nxm_hf.analysis.correlation import MIN_POINTS, Learning, learning_correlation, random_walk_null
from nxm_hf.analysis.recording import decode_in_mask
from nxm_hf.report.chart import Chart, Line
from nxm_hf.report.run import Run


def weight_charts(run: Run) -> list[Chart]:
    """Return the charts of the weights of a run.

    Args:
        run: A run with a recording.
    """
    return [_magnitudes(run), *_mask_counts(run), *_learning(run)]


def _magnitudes(run: Run) -> Chart:
    """Return the histogram of kept and pruned weights."""
    histograms, step = run.analysis["magnitudes"], run.recorded("in_mask")[-1][0]
    lines = [Line(name, tuple(histograms["edges"]), tuple(histograms[name])) for name in ("kept", "pruned")]
    return Chart(
        "weights",
        "Sizes of weights",
        "|w| / root mean square of its layer",
        "weights",
        tuple(lines),
        bars=True,
        note=f"The weights that the optimizer trains, at step {step}; the last bar also holds larger weights.",
    )


def mask_records(run: Run) -> list[list[str]]:
    """Return the recorded masks that count: one for each iteration of ADMM, else one for each record of the recipe.

    Masks of a warm-up or of the frozen-mask phase count only if there are no others.

    Args:
        run: A run with a recording.

    Returns:
        The values of "in_mask" of these records.
    """
    records = [record for record in run.analysis.get("records", []) if "in_mask" in record]
    trained = [record for record in records if record.get("phase", "recipe") == "recipe"]
    by_iteration = {record["iteration"]: record for record in trained if "iteration" in record}
    return [record["in_mask"] for record in list(by_iteration.values()) or trained or records]


def in_mask_counts(run: Run) -> dict[str, list[int]]:
    """Count in how many masks each followed weight was; see `mask_records`.

    Args:
        run: A run with a recording.

    Returns:
        The counts of the followed weights of each layer, by the name of the layer.
    """
    records = mask_records(run)
    counts = {}
    for number, (name, layer) in enumerate(run.analysis["layers"].items()):
        in_mask = [decode_in_mask(texts[number], len(layer["index"])) for texts in records]
        counts[name] = [sum(steps) for steps in zip(*in_mask, strict=True)]
    return counts


def magnitude_by_count(run: Run) -> list[tuple[int, int, float, float]]:
    """Group the followed weights by how many of the masks of `mask_records` they were in.

    Args:
        run: A run with a recording.

    Returns:
        (masks that hold it, number of weights, mean first |w|, mean last |w|) for each group.
    """
    groups: dict[int, list[tuple[float, float]]] = {}
    for name, counts in in_mask_counts(run).items():
        layer = run.analysis["layers"][name]
        for count, first, last in zip(counts, layer["first"], layer["last"], strict=True):
            groups.setdefault(count, []).append((abs(first), abs(last)))
    rows = []
    for count in sorted(groups):
        first_sum, last_sum = (sum(magnitudes) for magnitudes in zip(*groups[count], strict=True))
        size = len(groups[count])
        rows.append((count, size, first_sum / size, last_sum / size))
    return rows


def _mask_counts(run: Run) -> list[Chart]:
    """Return how often weights were in the mask, and their magnitudes (Figures 3 and 4 of NxMTransformer)."""
    groups, records = magnitude_by_count(run), len(mask_records(run))
    counts, sizes, first, last = zip(*groups, strict=True)
    size_of = dict(zip(counts, sizes, strict=True))
    edges = tuple(count - 0.5 for count in range(records + 2))
    weights = Line("weights", edges, tuple(size_of.get(count, 0) for count in range(records + 1)))
    magnitudes = (Line("at the beginning", counts, first), Line("at the end", counts, last))
    of_admm = any("iteration" in record for record in run.analysis["records"])
    x = f"times in the mask, of {records} {'iterations' if of_admm else 'recorded steps'}"
    note = "A peak in the middle comes from weights that enter and leave the mask repeatedly."
    return [
        Chart("weights", "Times in the mask", x, "followed weights", (weights,), bars=True, note=note),
        Chart("weights", "Size by times in the mask", x, "mean |w|", magnitudes),
    ]


def snapshots(run: Run) -> list[list[float]]:
    """Return the moves of the traced weights of all layers at evenly spaced steps.

    The first and last record of a training may have another distance and are then left out.

    Args:
        run: A run with a recording.

    Returns:
        A list of all traced weights for each of these steps; empty for fewer than two records.
    """
    moves = dict(run.recorded("way"))
    if len(moves) < 2:
        return []
    gap = Counter(after - before for before, after in pairwise(moves)).most_common(1)[0][0]
    return [[value for layer in layers for value in layer] for step, layers in moves.items() if step % gap == 0]


def _learning(run: Run) -> list[Chart]:
    """Return the chart of how long weights keep their direction, beside random walks (Stosic and Stosic)."""
    moves = snapshots(run)
    if len(moves) <= MIN_POINTS:
        return []
    kept = _traced_in_mask(run)
    trained, null = learning_correlation(torch.tensor(moves, dtype=torch.float64), kept), random_walk_null(len(moves))
    groups = {
        "kept": (trained, kept),
        "pruned": (trained, ~kept),
        "random walk": (null, torch.ones_like(null.delta, dtype=torch.bool)),
    }
    lines, medians = [], []
    for name, (learning, where) in groups.items():
        if learning.delta[where].isfinite().any():
            lines.append(_cumulative(name, learning, where))
            medians.append(f"{name} {learning.quantile(0.5, where):.3f}")
    sample = f"Of {len(kept)} weights at {len(moves)} recorded steps."
    note = f"{sample} Medians: {', '.join(medians)}. Random walks learn nothing."
    x = "% of training after which a weight has lost its direction"
    return [Chart("weights", "Learning correlation", x, "share of the weights", tuple(lines), note=note)]


def _traced_in_mask(run: Run) -> Tensor:
    """Return which of the traced weights of all layers were in the last mask."""
    texts, moves = run.recorded("in_mask")[-1][1], run.recorded("way")[-1][1]
    kept: list[bool] = []
    for text, layer, traced in zip(texts, run.analysis["layers"].values(), moves, strict=True):
        kept += decode_in_mask(text, len(layer["index"]))[: len(traced)]
    return torch.tensor(kept)


def _cumulative(name: str, learning: Learning, where: Tensor) -> Line:
    """Return the share of the selected weights whose correlation has ended, over the percentage of training."""
    delta = learning.delta[where]
    delta = delta[delta.isfinite()].sort().values
    grid = torch.linspace(0, 1, 51, dtype=delta.dtype)
    shares = torch.searchsorted(delta, grid, right=True).double() / len(delta)
    return Line(name, tuple(round(100 * x) for x in grid.tolist()), tuple(shares.tolist()))
