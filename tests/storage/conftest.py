"""Checkpoints that tests of storage read, and copies that they damage."""

import shutil
from pathlib import Path

import pytest

from tests.support.training import SaveAt, eventful, make_trainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with two checkpoints of a training that ended at step 4."""
    folder = tmp_path_factory.mktemp("whole")
    make_trainer(folder, eventful("admm"), callbacks=[SaveAt(2, 4)]).train()
    return folder


@pytest.fixture
def out(whole, tmp_path):
    """A copy of that folder to damage."""
    return Path(shutil.copytree(whole, tmp_path / "out"))
