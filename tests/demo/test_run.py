"""`nxm demo`: the main job from end to end, on rows and steps that are few."""

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from nxm_hf import NxMConfig, verify
from nxm_hf.cli.main import main
from nxm_hf.demo import run_demo


def test_the_demo_trains_dense_and_sparse_and_saves_what_loads_without_us(tmp_path):
    shown = []
    found = run_demo(tmp_path / "out", NxMConfig("ste", "1:4"), 8, 0, shown.append, rows=(64, 64))
    text = "\n".join(shown)
    rows = {line.split()[0]: line.split() for line in text.splitlines() if " -> " in line and line[0] != "B"}
    assert list(rows) == ["dense", "asp", "ste"]
    assert [row[-2] for row in rows.values()] == ["1.0000", "0.2500", "0.2500"]
    assert found.ok and verify(tmp_path / "out/ste", "1:4").ok and "12 layers, density 0.2500: ok" in text
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "out/ste")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out/ste")("word1 not word2")["input_ids"]) == 5


def test_a_directory_that_is_not_empty_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine").write_text("")
    assert main(["demo", str(tmp_path)]) == 2
    assert "is there already, and nothing is overwritten" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("words", [["--recipe", "amdm"], ["--pattern", "4:2"], ["--steps", "0"]])
def test_a_wrong_option_is_answered_before_anything_is_trained(words, tmp_path, capsys):
    assert main(["demo", str(tmp_path / "out"), *words]) == 2
    assert capsys.readouterr().out == "" and not (tmp_path / "out").exists()
