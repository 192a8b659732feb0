"""Weights that cannot be pruned are refused before anything changes; sharded ones also in tests/distributed."""

import pytest
import torch

from nxm_hf import NxMConfig
from nxm_hf.layers.plan import Plan
from nxm_hf.pruning.weight_checks import check_shards, check_weights
from tests.support.models import make_bert


def test_the_layer_with_nan_is_named_with_their_number():
    model = make_bert()
    plan = Plan.of(model, NxMConfig("asp"))
    check_weights(plan.targets)
    with torch.no_grad():
        plan.targets[3].layer.weight[0, :2] = torch.nan
    with pytest.raises(ValueError, match=f"{plan.targets[3].name} holds 2 NaN"):
        check_weights(plan.targets)


def test_a_weight_without_values_is_refused():
    with torch.device("meta"):
        plan = Plan.of(make_bert(), NxMConfig("asp"))
    with pytest.raises(ValueError, match=r"meta device.*Load the model without device_map="):
        check_weights(plan.targets)


def test_what_needs_whole_weights_is_named():
    plan = Plan.of(make_bert(), NxMConfig("asp"))
    check_shards(plan, reconstructs=None, permutes=False)
    for words in ({"reconstructs": "model", "permutes": False}, {"reconstructs": None, "permutes": True}):
        with pytest.raises(ValueError, match=r'(reconstruct="model"|permute=True) needs whole ones; call prune before'):
            check_shards(plan, **words)
