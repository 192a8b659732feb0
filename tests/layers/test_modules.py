"""Modules: names and roles are those of the plain model, whatever wraps it."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from nxm_hf.layers.find import find_layers
from tests.support.layers import PLAIN_NAMES, Plain, classifier, names_of


def checkpointed(model):
    """Every second block wrapped, as selective activation checkpointing does."""
    model.bert.encoder.layer[1] = checkpoint_wrapper(model.bert.encoder.layer[1])
    return model


def compiled_blocks(model):
    for index, block in enumerate(model.bert.encoder.layer):
        model.bert.encoder.layer[index] = torch.compile(block)
    return model


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # by torch.compile
@pytest.mark.parametrize(
    "wrap",
    [
        torch.compile,
        compiled_blocks,
        checkpointed,
        nn.DataParallel,
        lambda model: torch.compile(nn.DataParallel(model)),
    ],
    ids=["compiled", "compiled blocks", "checkpointed", "parallel", "compiled parallel"],
)
def test_names_and_roles_are_those_of_the_plain_model(wrap):
    plain = [(layer.name, layer.role) for layer in find_layers(classifier())]
    assert [(layer.name, layer.role) for layer in find_layers(wrap(classifier()))] == plain


def test_a_part_that_is_called_module_keeps_its_name():
    model = nn.Module()
    model.module = Plain()
    assert names_of(model) == [f"module.{name}" for name in PLAIN_NAMES]
