"""The demo: the main job on made-up rows from end to end."""

import pytest

from nxm_hf import verify
from tests.support.example_scripts import demo, run_glue


@pytest.mark.slow
def test_the_demo_trains_saves_and_verifies(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "TRAIN", 64)
    monkeypatch.setattr(demo, "HELD_OUT", 64)
    out = tmp_path / "a b"
    assert run_glue.main(["--task_name", "demo", "--output_dir", str(out), "--max_steps", "8", "--recipe", "ste"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n{name} " in shown for name in ("dense", "asp 2:4", "ste 2:4"))
    assert "12 layers, density 0.5000: ok" in shown and "the same weights" in shown
    assert shown.count("$ python run_glue.py") == 4
    assert verify(out / "ste", "2:4").ok
