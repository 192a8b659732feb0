"""A plugin of pytest: tests of transformers get a sparse Trainer in the place of `transformers.Trainer`.

`tests.clients` puts the folder of this file on the path of another pytest. Environment variables say which Trainer
(`NXM_IN_PLACE`), and where the outcomes go (`NXM_OUTCOMES`).
"""

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from nxm_hf import NxMCallback, NxMConfig, NxMTrainer
from nxm_hf.layers.modules import find_blocks

RECIPE = os.environ.get("NXM_IN_PLACE", "plain")  # or "callback", or a recipe for NxMTrainer
PATTERN = "2:4"
outcomes: dict[str, tuple[str, str]] = {}

Trainer = transformers.Trainer


def config_for(recipe: str, model: nn.Module | None = None, *_: Any, **__: Any) -> NxMConfig:
    """Return the config of a Trainer: dense for a model without a block that could be pruned.

    Args:
        recipe: The recipe for other models.
        model: The first argument of the Trainer. Others do not matter.
    """
    has_blocks = model is None or any(True for _ in find_blocks(model))
    return NxMConfig(recipe if has_blocks else "dense", PATTERN)


class SparseTrainer(NxMTrainer):
    """Take the arguments of Trainer, and train by the recipe."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, sparsity=config_for(RECIPE, *args, **kwargs), **kwargs)


class TrainerWithCallback(Trainer):
    """Take the arguments of Trainer, and train with `NxMCallback`."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.add_callback(NxMCallback(config_for("asp", *args, **kwargs)))


def give_a_block(model_class: type[nn.Module]) -> None:
    """Add a block that can be pruned to a model of two numbers. Its output is multiplied by 0.

    Args:
        model_class: The class of the model, which is changed.
    """
    make, run = model_class.__init__, model_class.forward

    @functools.wraps(make)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        with torch.random.fork_rng(devices=[]):  # the tests compare what is drawn after it
            self.encoder = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))])

    @functools.wraps(run)  # Trainer looks at the names of its arguments
    def forward(self: Any, input_x: Any, *args: Any, **kwargs: Any) -> Any:
        nothing = 0 * sum(block(torch.ones(8)).sum() for block in self.encoder)
        return run(self, input_x + nothing.to(input_x.dtype), *args, **kwargs)

    model_class.__init__, model_class.forward = __init__, forward  # type: ignore[method-assign]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Change the models of all test modules once."""
    modules = {getattr(item, "module", None) for item in items} - {None}
    classes = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    for each in classes:
        if each.__name__.startswith("Regression") and issubclass(each, nn.Module):
            if "layers" not in each.__init__.__code__.co_names:
                give_a_block(each)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how a test ended."""
    if report.when == "call" or report.outcome != "passed":
        crash = getattr(report.longrepr, "reprcrash", None)
        outcomes[report.nodeid] = (report.outcome, crash.message if crash else "")


def pytest_sessionfinish() -> None:
    """Write the outcomes."""
    Path(os.environ["NXM_OUTCOMES"]).write_text(json.dumps(outcomes))


TRAINERS = {"plain": Trainer, "callback": TrainerWithCallback}
# With the import of its Trainer, transformers puts itself into this table once more.
sys.modules["transformers"].Trainer = TRAINERS.get(RECIPE, SparseTrainer)  # type: ignore[attr-defined]
