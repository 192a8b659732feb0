"""The charts: what is drawn is what was recorded."""

import json

import numpy
import pytest
import torch
from transformers import TrainerCallback

from nxm_hf import AnalysisCallback
from nxm_hf.analysis.recording import ANALYSIS_FILE, TRACED_WEIGHTS, decode_in_mask
from nxm_hf.report import charts, read_runs
from nxm_hf.report.weight_charts import snapshots
from tests.support.report_runs import read_analysis, train_run


class Walker(TrainerCallback):
    """Keeps every weight at every step."""

    def __init__(self):
        self.weights = []

    def on_step_begin(self, args, state, control, model, **kwargs):
        self.weights.append({name: p.detach().clone() for name, p in model.named_parameters()})


def test_the_learning_correlation_is_that_of_the_weights_themselves(tmp_path):
    walker = Walker()
    train_run(tmp_path, "admm", callbacks=(AnalysisCallback, walker), logging_steps=1, max_steps=14, eval_strategy="no")
    (run,) = read_runs([tmp_path])
    layers = run.analysis["layers"]
    places = [(f"{name}.weight", i) for name, layer in layers.items() for i in layer["index"][:TRACED_WEIGHTS]]
    seen = [[weights[name].flatten()[i].item() for name, i in places] for weights in walker.weights]
    ways, found = (torch.tensor(x, dtype=torch.float64) for x in (seen, snapshots(run)))
    assert len(found) == 15 and torch.allclose(found[:14], ways - ways[0], atol=1e-9, rtol=1e-5)
    (chart,) = (chart for chart in charts([run]) if chart.title == "Learning correlation")
    lines = {line.name: line for line in chart.lines}
    texts = zip(run.recorded("in_mask")[-1][1], layers.values(), strict=True)
    kept = [bit for text, layer in texts for bit in decode_in_mask(text, len(layer["index"]))[:TRACED_WEIGHTS]]
    assert list(lines) == ["kept", "pruned", "random walk"] and 0 < sum(kept) < len(kept) == len(places)
    for name, chosen in (("kept", True), ("pruned", False)):
        deltas = [_first_crossing(found[:, i].numpy()) for i, bit in enumerate(kept) if bit == chosen]
        for x, share in zip(lines[name].xs, lines[name].ys, strict=True):
            assert share == pytest.approx(sum(100 * delta <= x for delta in deltas) / len(deltas), abs=0.02)
        assert f"{name} {sorted(deltas)[round(0.5 * (len(deltas) - 1))]:.3f}" in chart.note
    null = lines["random walk"].ys
    assert null[-1] == 1 and null[0] < 0.05 and list(null) == sorted(null)
    assert f"{len(kept)} weights at 15 recorded steps" in chart.note and "random walk 0." in chart.note


def _first_crossing(series):
    """The first lag at which a series does not correlate with itself, by a line, over K - 1: numpy's correlation."""
    before, count = 1.0, len(series)
    for lag in range(1, count - 8 + 1):
        now = numpy.corrcoef(series[:-lag], series[lag:])[0, 1]
        if now <= 0:
            return (lag - 1 + before / (before - now)) / (count - 1)
        before = now
    return 1.0


def test_too_few_looks_have_no_learning_correlation_and_uneven_ones_are_left_out(made, runs):
    (run,) = read_runs([made["admm"]])
    assert "Learning correlation" not in {chart.title for chart in charts([run])}
    words = read_analysis(runs["admm"])
    words["records"] = [{**words["records"][0], "step": step} for step in (0, 1, 5, 10, 15, 20, 23)]
    (runs["admm"] / ANALYSIS_FILE).write_text(json.dumps(words))
    assert len(snapshots(read_runs([runs["admm"]])[0])) == 5
    for record in words["records"]:
        record.pop("way")  # an older version wrote none
    (runs["admm"] / ANALYSIS_FILE).write_text(json.dumps(words))
    assert snapshots(read_runs([runs["admm"]])[0]) == []
