"""Plans: which layer holds which pattern, and what is left dense."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from nxm_hf import NxMConfig, attach
from nxm_hf.layers.find import find_layers, left_dense
from nxm_hf.layers.plan import Plan
from tests.support.layers import TEXT


def test_experts_in_one_parameter_stay_dense_and_that_is_said(caplog):
    """Or most of a mixture of experts would be left dense while the log speaks of a density of one half."""
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("mixtral", **TEXT, num_key_value_heads=1, num_local_experts=2)
    )
    experts = [f"model.layers.{i}.mlp.experts.{end}" for i in range(2) for end in ("gate_up_proj", "down_proj")]
    why = "it holds several matrices, of experts or of heads, in one parameter"
    assert {name: said for name, said in left_dense(model).items() if "experts" in name} == dict.fromkeys(experts, why)
    with pytest.raises(ValueError, match=f"experts.gate_up_proj is never pruned, because {why}"):
        find_layers(model, include="experts")
    assert set(Plan.of(model, NxMConfig("asp")).skipped) == set(experts)
    assert not Plan.of(model, NxMConfig("asp", include="attention")).skipped  # nobody asked for more
    with caplog.at_level("WARNING", "nxm_hf"):
        attach(model, torch.optim.SGD(model.parameters(), 0.1), "asp", total_steps=2)
    assert f"Left dense: {experts[0]}: {why}; {experts[1]}: {why}; " in caplog.text
