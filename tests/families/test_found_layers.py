"""The layers that are found in each kind of model, and their roles, against tables typed in by hand."""

from collections import Counter

import pytest
import torch
import transformers

from nxm_hf.layers.find import find_layers
from tests.support.families import CASES, build, expected, template


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_layer_of_the_table_is_found_with_its_role_and_no_other(case):
    model = build(case)
    layers = find_layers(model)
    assert Counter((template(layer.name), layer.role) for layer in layers) == expected(case)

    matrices = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
    found = {layer.name for layer in layers}
    left_out = {name for name, module in model.named_modules() if isinstance(module, matrices)} - found
    assert {template(name) for name in left_out} == set(case.left_out.split())
