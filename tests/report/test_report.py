"""The command `nxm report`."""

from nxm_hf.cli.main import main
from tests.support.html_reader import Reader


def test_the_command_writes_the_page_into_the_first_directory(runs, capsys):
    assert main(["report", str(runs["sr-ste"]), str(runs["admm"])]) == 0
    assert str(runs["sr-ste"] / "report.html") in capsys.readouterr().out
    assert not (runs["admm"] / "report.html").exists()
    Reader((runs["sr-ste"] / "report.html").read_text(encoding="utf-8"))
