"""Trained runs: shared ones, and copies that a test may damage."""

import shutil

import pytest
import torch

from tests.support.report_runs import RECIPES, train_run


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    return {recipe: train_run(folder / recipe, recipe) for recipe in RECIPES}


@pytest.fixture
def runs(made, tmp_path):
    """Directories that a test may spoil."""
    return {recipe: shutil.copytree(folder, tmp_path / recipe) for recipe, folder in made.items()}
