"""What tests of the comparison share: a model and rows on disk, and a page of finished trials."""

import pytest

from benchmarks.glue.comparison.page import render
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
