"""The charts as PNG files."""

import builtins

import pytest

from nxm_hf.report import charts, read_runs, write_report
from nxm_hf.report.training_page import training_page


def test_pictures_are_drawn_where_matplotlib_is_installed(runs):
    pytest.importorskip("matplotlib")
    found = read_runs([runs["admm"], runs["rigl"]])
    _, *pictures = write_report([runs["admm"], runs["rigl"]])
    assert len(set(pictures)) == len(charts(found)) and all(p.read_bytes()[:4] == b"\x89PNG" for p in pictures)


def test_without_matplotlib_there_is_the_same_page_and_no_picture(runs, monkeypatch):
    real = builtins.__import__

    def lacking(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    before = training_page(read_runs([runs["admm"]]))
    monkeypatch.setattr(builtins, "__import__", lacking)
    assert write_report([runs["admm"]]) == [runs["admm"] / "report.html"]
    assert (runs["admm"] / "report.html").read_text(encoding="utf-8") == before
