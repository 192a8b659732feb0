"""What tests of the comparison share: a model and rows on disk, and a page of finished trials."""

import contextlib
import sys

import pytest

from benchmarks.glue.comparison.example_scripts import script_of
from benchmarks.glue.comparison.page import render
from benchmarks.glue.comparison.runner import Runner
from tests.support.comparison_trials import write_comparison, write_model, write_rows


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return str(write_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    return str(write_rows(tmp_path_factory.mktemp("rows")))


@pytest.fixture(scope="session")
def page(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("comparison")
    records = write_comparison(folder, model)
    return records, render(folder), folder


@pytest.fixture
def without_plots(monkeypatch):
    """Make matplotlib look absent, for tests that read the text of pages: a plot takes longer than all else."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)


@pytest.fixture
def trials_in_this_process(monkeypatch):
    """Run trials in this process, for tests that are not about child processes: a new one imports for seconds."""

    def call(self, command, log, device):
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            return script_of(command[2]).main(command[3:])

    monkeypatch.setattr(Runner, "_call", call)
