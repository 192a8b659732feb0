"""The command `nxm report`."""

from nxm_hf.cli.main import main
from tests.support.html_reader import Reader


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


def test_pictures_of_an_earlier_report_are_removed(runs):
    old = runs["admm"] / "report" / "a-chart-of-before.png"
    old.parent.mkdir(exist_ok=True)
    old.write_bytes(b"")
    assert main(["report", str(runs["admm"])]) == 0
    assert not old.exists()
