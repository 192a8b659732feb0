"""The phases of a run are those of its engine."""

import json

import pytest

from nxm_hf import NxMConfig
from nxm_hf.methods import PHASES
from nxm_hf.report import read_runs
from nxm_hf.report.charts import charts
from nxm_hf.report.phases import FROZEN, PRUNING, phase_marks
from tests.support.report_runs import make_run_trainer


@pytest.mark.parametrize(("warmup", "settle"), [(0.25, 0.25), (0.0, 0.5), (0.5, 0.0), (0.0, 0.0)])
def test_marks_are_where_the_logged_phase_changes(warmup, settle, tmp_path):
    trainer = make_run_trainer(tmp_path, callbacks=(), logging_steps=1, save_steps=12)
    trainer._use_config(NxMConfig("sr-ste", warmup=warmup, settle=settle))
    trainer.train()
    (run,) = read_runs([tmp_path])
    phases = dict(run.points("nxm/phase"))
    first = {PRUNING: "recipe", FROZEN: "settle"}
    expected = []
    for label, name in first.items():
        steps = [step for step, phase in phases.items() if phase == PHASES.index(name)]
        if steps and min(steps) > 1:
            expected.append((min(steps), label))
    assert phase_marks(run) == expected and len(expected) == (warmup > 0) + (settle > 0)


def test_steps_that_were_not_reached_have_no_mark_and_an_unknown_config_none_at_all(runs):
    folder = runs["sr-ste"]
    config = json.loads((folder / "nxm_config.json").read_text())
    for path in folder.glob("checkpoint-*/trainer_state.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "max_steps": 48}))
    (folder / "nxm_config.json").write_text(json.dumps({**config, "warmup": 0.125, "settle": 0.5}))
    assert phase_marks(*read_runs([folder])) == [(6, PRUNING)]
    (folder / "nxm_config.json").write_text(json.dumps({**config, "recipe": "of-a-newer-version"}))
    assert phase_marks(*read_runs([folder])) == []


def test_marks_of_two_runs_have_the_colours_of_their_curves(runs):
    config = json.loads((runs["sr-ste"] / "nxm_config.json").read_text())
    (runs["sr-ste"] / "nxm_config.json").write_text(json.dumps({**config, "settle": 0.25}))
    loss = charts(read_runs([runs["rigl"], runs["sr-ste"]]))[0]
    assert [(mark.x, mark.label, mark.line) for mark in loss.marks] == [(9, FROZEN, 1)]
    assert [line.name for line in loss.lines] == ["rigl", "sr-ste"]
