"""Saved models for the commands to read."""

import pytest

from tests.support.models import make_bert
from tests.support.saved_models import make_sparse


@pytest.fixture
def sparse(tmp_path):
    return make_sparse(make_bert(), tmp_path / "sparse")


@pytest.fixture
def dense(tmp_path):
    make_bert().save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"
