"""Trained runs that several tests read."""

import pytest
import torch

from tests.support.report_runs import RECIPES, train_run


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    return {recipe: train_run(folder / recipe, recipe) for recipe in RECIPES}
