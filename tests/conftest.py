"""Settings and fixtures of all tests; the models and trainings that they share are in `tests.support`."""

import os

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_PROGRESS_BARS="1")

import pytest
import torch
import transformers
from hypothesis import settings

from tests.support.models import make_arguments, make_rows, spare_imports

collect_ignore_glob = ["support/pinned_*.py"]  # a script of its own, which imports its parts from beside it
# The same examples everywhere, however slow; `--hypothesis-profile=default` draws others.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")
torch.set_num_threads(1)  # tiny tensors: threads only contend
transformers.utils.logging.disable_progress_bar()


@pytest.fixture(autouse=True, scope="module")
def imports_are_no_garbage():
    spare_imports()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)  # transformers 4.57 sets it for all later trainings


@pytest.fixture
def rows():
    return make_rows()


@pytest.fixture
def arguments(tmp_path):
    return lambda **changes: make_arguments(tmp_path, **changes)
