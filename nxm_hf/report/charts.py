"""Charts: what is to be drawn of runs, before anybody has chosen a pen."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import mul

import torch

from nxm_hf.analysis.correlation import MIN_POINTS, Learning, learning_correlation, random_walk_null
from nxm_hf.analysis.recording import decode_in_mask
from nxm_hf.report.run import Run


@dataclass(frozen=True)
class Line:
    """A curve; in a chart of bars, `xs` are the edges, one more than the `ys`."""

    name: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]


@dataclass(frozen=True)
class Chart:
    """A picture's worth of curves or bars over one axis. `section` is the part of the page it belongs to."""

    section: str
    title: str
    x: str
    y: str
    lines: tuple[Line, ...]
    bars: bool = False
    logarithmic: bool = False
    note: str = ""


def charts(runs: Sequence[Run]) -> list[Chart]:
    """Every chart that these runs have the numbers for."""
    evaluations = dict.fromkeys(key for run in runs for key in run.evaluations)
    found = [
        _curves(runs, "loss", "Training loss", "loss"),
        *(_curves(runs, key, f"Evaluation: {_words(key)}", _words(key)) for key in evaluations),
        _curves(runs, "nxm/mask_similarity", "Mask similarity", "share of kept weights kept again"),
        _curves(runs, "nxm/flip_rate", "Flip rate", "share of all weights that changed place"),
        _curves(runs, "nxm/residual", "Residual", "‖W - P(W)‖ / ‖W‖", logarithmic=True),
        Chart("curves", "Density in training", "step", "fraction kept", _densities(runs)),
        *(chart for run in runs if run.analysis for chart in _of_samples(run, runs)),
    ]
    return [chart for chart in found if chart.lines]


def _curves(runs: Sequence[Run], key: str, title: str, y: str, logarithmic: bool = False) -> Chart:
    points = [(run.name, run.points(key)) for run in runs]
    lines = [Line(name, *zip(*found, strict=True)) for name, found in points if found]
    logarithmic = logarithmic and all(value > 0 for line in lines for value in line.ys)
    return Chart("curves", title, "step", y, tuple(lines), logarithmic=logarithmic)


def _densities(runs: Sequence[Run]) -> tuple[Line, ...]:
    """Of the masks in use, all layers together, where they were recorded."""
    lines = []
    for run in (run for run in runs if run.analysis):
        sizes = [layer["shape"][0] * layer["shape"][1] for layer in run.analysis["layers"].values()]
        steps, densities = zip(*run.sampled("density"), strict=True)
        kept = (sum(map(mul, sizes, values)) / sum(sizes) for values in densities)
        lines.append(Line(run.name, steps, tuple(kept)))
    return tuple(lines)


def _words(key: str) -> str:
    """eval_rte_accuracy as "rte accuracy"."""
    return key.removeprefix("eval_").replace("_", " ")


def _of_samples(run: Run, runs: Sequence[Run]) -> list[Chart]:
    of = f" of {run.name}" if len(runs) > 1 else ""
    return [_magnitudes(run, of), *_counts(run, of), *_learning(run, of)]


def _magnitudes(run: Run, of: str) -> Chart:
    found = run.analysis["magnitudes"]
    lines = [Line(name, tuple(found["edges"]), tuple(found[name])) for name in ("kept", "pruned")]
    return Chart(
        "weights",
        f"Sizes of weights{of}",
        "|w| / root mean square of its layer",
        "weights",
        tuple(lines),
        bars=True,
        note=f"The weights that the optimizer trains, at step {run.sampled('in_mask')[-1][0]}; the last bar also holds "
        "what is larger.",
    )


def in_mask_counts(run: Run) -> dict[str, list[int]]:
    """Layer -> for each of its followed weights, at how many of the recorded steps it was in the mask."""
    layers, records = run.analysis["layers"], [texts for _, texts in run.sampled("in_mask")]
    counts = {}
    for number, (name, layer) in enumerate(layers.items()):
        seen = [decode_in_mask(texts[number], len(layer["index"])) for texts in records]
        counts[name] = [sum(column) for column in zip(*seen, strict=True)]
    return counts


def magnitude_by_count(run: Run) -> list[tuple[int, int, float, float]]:
    """(times in the mask, followed weights, mean first |w|, mean last |w|), for each count that there is."""
    groups: dict[int, list[tuple[float, float]]] = {}
    for name, counts in in_mask_counts(run).items():
        layer = run.analysis["layers"][name]
        for count, first, last in zip(counts, layer["first"], layer["last"], strict=True):
            groups.setdefault(count, []).append((abs(first), abs(last)))
    means = {
        count: [sum(values) / len(found) for values in zip(*found, strict=True)] for count, found in groups.items()
    }
    return [(count, len(groups[count]), *means[count]) for count in sorted(groups)]


def _counts(run: Run, of: str) -> list[Chart]:
    """How often weights were in the mask, and how large those are: Figs. 3 and 4 of NxMTransformer."""
    table, looks = magnitude_by_count(run), len(run.sampled("in_mask"))
    held = {count: weights for count, weights, _, _ in table}
    edges = tuple(count - 0.5 for count in range(looks + 2))
    counts, _, first, last = zip(*table, strict=True)
    weights = Line("weights", edges, tuple(held.get(count, 0) for count in range(looks + 1)))
    x, note = f"times in the mask, of {looks} looks", "A peak in the middle is of weights that go in and out by turns."
    sizes = (Line("at the beginning", counts, first), Line("at the end", counts, last))
    return [
        Chart("weights", f"Times in the mask{of}", x, "followed weights", (weights,), bars=True, note=note),
        Chart("weights", f"Size by times in the mask{of}", x, "mean |w|", sizes),
    ]


def snapshots(run: Run) -> list[list[float]]:
    """The ways of some weights, at looks that are evenly far apart: those at the ends of a training may not be."""
    found = dict(run.sampled("way"))
    if len(found) < 2:
        return []
    gap = Counter(after - before for before, after in pairwise(found)).most_common(1)[0][0]
    return [[value for layer in layers for value in layer] for step, layers in found.items() if step % gap == 0]


def _learning(run: Run, of: str) -> list[Chart]:
    """For how long weights keep their direction, beside random walks: the f of Stosic and Stosic."""
    ways = snapshots(run)
    if len(ways) <= MIN_POINTS:
        return []
    layers, (_, texts) = run.analysis["layers"].values(), run.sampled("in_mask")[-1]
    width = [len(way) for way in run.sampled("way")[-1][1]]
    bits = [decode_in_mask(text, len(x["index"]))[:many] for text, x, many in zip(texts, layers, width, strict=True)]
    kept = torch.tensor([bit for layer in bits for bit in layer])
    ours, null = learning_correlation(torch.tensor(ways, dtype=torch.float64), kept), random_walk_null(len(ways))
    everyone = torch.ones_like(null.delta, dtype=torch.bool)
    found = {"kept": (ours, kept), "pruned": (ours, ~kept), "random walk": (null, everyone)}
    lines = [_shares(name, *pair) for name, pair in found.items() if pair[0].delta[pair[1]].isfinite().any()]
    medians = ", ".join(f"{line.name} {found[line.name][0].quantile(0.5, found[line.name][1]):.3f}" for line in lines)
    note = f"Of {len(kept)} weights at {len(ways)} looks. Medians: {medians}. Random walks learn nothing."
    x = "% of training after which a weight has lost its direction"
    return [Chart("weights", f"Learning correlation{of}", x, "share of the weights", tuple(lines), note=note)]


def _shares(name: str, learning: Learning, where: torch.Tensor) -> Line:
    """The share of some weights whose correlation ends by then, in percent of the training."""
    delta = learning.delta[where]
    delta = delta[delta.isfinite()].sort().values
    grid = torch.linspace(0, 1, 51, dtype=delta.dtype)
    shares = torch.searchsorted(delta, grid, right=True).double() / len(delta)
    return Line(name, tuple(round(100 * x) for x in grid.tolist()), tuple(shares.tolist()))
