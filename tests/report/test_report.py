"""The command `nxm report`."""

import pytest

from nxm_hf.cli.main import main
from nxm_hf.pruning.directory import prune_directory
from tests.support.html_reader import Reader
from tests.support.models import make_bert


def test_the_command_writes_the_page_into_the_first_directory(runs, capsys):
    assert main(["report", str(runs["sr-ste"]), str(runs["admm"])]) == 0
    assert str(runs["sr-ste"] / "report.html") in capsys.readouterr().out
    assert not (runs["admm"] / "report.html").exists()
    Reader((runs["sr-ste"] / "report.html").read_text(encoding="utf-8"))


def test_out_names_the_directory_of_the_page_and_the_runs_stay_as_they_were(runs, tmp_path, capsys):
    before = {path for run in runs.values() for path in run.rglob("*")}
    out = tmp_path / "pages" / "both"
    assert main(["report", str(runs["sr-ste"]), str(runs["admm"]), "--out", str(out)]) == 0
    assert str(out / "report.html") in capsys.readouterr().out
    assert {path for run in runs.values() for path in run.rglob("*")} == before
    Reader((out / "report.html").read_text(encoding="utf-8"))


def test_pictures_of_an_earlier_report_are_removed_and_those_of_others_stay(runs, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    assert main(["report", str(runs["admm"]), "--out", str(out)]) == 0
    old = (out / "report/residual.png").rename(out / "report/a-chart-of-before.png")
    (out / "report/mine.png").write_bytes(b"mine")
    assert main(["report", str(runs["admm"]), str(runs["rigl"]), "--out", str(out)]) == 0
    assert not old.exists() and (out / "report/mine.png").read_bytes() == b"mine"


def test_pruned_models_are_side_by_side(tmp_path):
    make_bert().save_pretrained(tmp_path / "dense")
    for name, pattern in (("a", "2:4"), ("b", "1:4")):
        prune_directory(tmp_path / "dense", tmp_path / name, pattern)
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "out")]) == 0
    tables = Reader((tmp_path / "out/report.html").read_text(encoding="utf-8")).tables
    head, *rows = tables["Layers"]
    densities = [row[head.index("a: density")] for row in rows], [row[head.index("b: density")] for row in rows]
    assert densities == (["0.5000"] * 12, ["0.2500"] * 12)
    assert ["method", "magnitude", "magnitude"] in tables["How it was pruned"]
