"""Plans: which layer holds which pattern, and what is left dense."""

from dataclasses import replace

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from transformers import AutoConfig, AutoModelForCausalLM

from nxm_hf import NxMConfig, attach
from nxm_hf.layers.find import find_layers, left_dense
from nxm_hf.layers.plan import Plan
from nxm_hf.layers.sharding import local
from nxm_hf.layers.weight_part import WeightPart
from nxm_hf.patterns import parse
from tests.support.containers import Pair, make_encoder
from tests.support.group_of_one import group_of_one
from tests.support.layers import TEXT, classifier
from tests.support.models import make_model
from tests.support.toy_training import Toy
from tests.support.versions import not_in_4


def patterns_of(plan):
    """Return the patterns of a plan, by role."""
    return {target.layer.role: str(target.pattern) for target in plan.targets}


@pytest.mark.parametrize("order", [1, -1], ids=["as written", "reversed"])
@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ({"ffn": "1:4", "ffn_in": "2:4"}, {"ffn_in": "2:4", "ffn_out": "1:4"}),
        ({"attention": "1:4", "key": "2:8", "default": "2:4"},
         {"query": "1:4", "key": "2:8", "value": "1:4", "attention_output": "1:4", "ffn_in": "2:4", "ffn_out": "2:4"}),
        ({"default": "2:4", "ffn": "dense", "ffn_out": "1:4"},
         dict.fromkeys(("query", "key", "value", "attention_output"), "2:4") | {"ffn_out": "1:4"}),
    ],
    ids=["role and group", "role, group and default", "a dense group"],
)  # fmt: skip
def test_a_role_comes_before_its_group_and_the_default_comes_last(pattern, expected, order):
    """In whatever order they are written."""
    pattern = dict([*pattern.items()][::order])
    assert patterns_of(Plan.of(classifier(), NxMConfig("asp", pattern))) == expected


@pytest.mark.parametrize("pattern", ["2:4", {"ffn": "2:4"}], ids=str)
def test_layers_that_the_pattern_does_not_fit_are_an_error_even_if_others_fit(pattern):
    model = classifier(intermediate_size=34)  # no multiple of 4, so that 2:4 fits what has 34 outputs, and not inputs
    outputs = [f"bert.encoder.layer.{i}.output.dense" for i in range(2)]
    with pytest.raises(ValueError, match=r"does not fit 2 layers \(bert\.encoder\.layer\.0\.output\.dense, ") as error:
        Plan.of(model, NxMConfig("asp", pattern))
    assert all(name in str(error.value) for name in outputs) and "intermediate" not in str(error.value)
    plan = Plan.of(model, NxMConfig("asp", pattern, on_indivisible="skip"))
    assert list(plan.skipped) == outputs
    assert len(plan.targets) == (2 if isinstance(pattern, dict) else 10) and not plan.layers.keys() & set(outputs)


@not_in_4("has no stacks of experts in Mixtral")
def test_experts_of_unknown_form_stay_dense_and_that_is_said_with_their_share(caplog):
    """Or most of a mixture of experts would be left dense while the log speaks of a density of one half."""
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("mixtral", **TEXT, num_key_value_heads=1, num_local_experts=2)
    )
    for layer in model.model.layers:
        del layer.mlp.experts.is_transposed  # which transformers says of the models that it knows
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
    held = sum(model.get_parameter(name).numel() for name in experts) / model.num_parameters()
    assert 0.5 < held < 0.9 and f"They hold {100 * held:.1f} % of the model's weights." in caplog.text


def test_the_layers_of_a_container_are_named_as_in_the_model_inside_it():
    encoder = make_encoder()
    plan, plain = Plan.of(encoder, NxMConfig("asp")), Plan.of(encoder[0].model, NxMConfig("asp"))
    assert plan.layers == plain.layers and plan.model is plain.model is encoder[0].model
    assert plan.whole is encoder and plain.whole is plain.model
    assert Plan.of(torch.nn.DataParallel(encoder), NxMConfig("asp")).whole is encoder


def test_a_container_of_two_models_is_an_error_that_names_them():
    with pytest.raises(ValueError, match=r'holds 2 models \(query\.model, document\.model\).*"query\.model"\)'):
        Plan.of(Pair(), NxMConfig("asp"))
    assert Plan.of(Pair(), NxMConfig("dense")).targets == ()


def test_a_target_is_the_weight_as_a_matrix_with_its_gradient():
    model = make_model("gpt2")
    for plan in (Plan.of(model, NxMConfig("asp", "1:4")), Plan.of(Toy(), NxMConfig("asp", "1:4"))):
        for target in plan.targets:
            layer, shape = target.layer, target.layer.shape
            assert (target.name, target.numel) == (layer.name, shape[0] * shape[1])
            assert target.kept == target.numel // 4 and target.part is None and target.pattern_here is target.pattern
            assert target.matrix().grad is None and target.matrix().shape == shape
            layer.weight.grad = torch.rand_like(layer.weight)
            matrix = target.matrix()
            assert matrix.data_ptr() == layer.weight.data_ptr() and torch.equal(matrix, layer.matrix(layer.weight))
            assert matrix.grad.data_ptr() == layer.weight.grad.data_ptr()
            assert torch.equal(matrix.grad, layer.matrix(layer.weight.grad))
            assert matrix is layer.weight or not matrix.requires_grad
    assert any(target.matrix() is not target.layer.weight for target in Plan.of(model, NxMConfig("asp")).targets)


def test_a_plan_holds_its_pattern_if_all_of_its_layers_do_and_trains_those_that_are_not_frozen():
    plan = Plan.of(Toy(), NxMConfig("asp"))
    assert plan.trained == plan.targets and not plan.holds_pattern()
    for target in plan.targets:
        assert not plan.holds_pattern()
        with torch.no_grad():
            target.matrix().copy_(target.pattern.project(target.matrix()))
    assert plan.holds_pattern()
    plan.targets[1].layer.weight.requires_grad_(False)
    assert plan.trained == (plan.targets[0], *plan.targets[2:])


def test_why_layers_are_skipped_is_one_line_of_a_few_and_their_share_counts_all_weights():
    model = classifier(intermediate_size=34)
    plan = Plan.of(model, NxMConfig("asp", on_indivisible="skip"))
    names = [f"bert.encoder.layer.{i}.output.dense" for i in range(2)]
    assert plan.reasons == "; ".join(f"{name}: {plan.skipped[name].rstrip('.')}" for name in names)
    assert all(why.endswith(".") for why in plan.skipped.values()) and ".;" not in plan.reasons
    total = sum(parameter.numel() for parameter in model.parameters())
    assert plan.skipped_share == 2 * 34 * 16 / total
    assert replace(plan, skipped=plan.skipped | {"another.name": "it is tied"}).skipped_share == plan.skipped_share
    assert Plan.of(Toy(), NxMConfig("dense")).skipped_share == 0


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (NxMConfig("asp", {"cross_query": "2:4"}), 'No layer has a role named in pattern; add "default"'),
        (NxMConfig("asp", "3:7", on_indivisible="skip"), r"It fits none of blocks\.0\.up, .*Choose another pattern\."),
        (NxMConfig("asp", "dense"), None),
        (NxMConfig("asp", "3:7"), r"does not fit 4 layers \(blocks\.0\.up, .*Leave them dense with on_indivisible="),
        (
            NxMConfig("structure-decay", "2:4", {"frames": ["2:16", "2:8", "2:4"]}),
            r"The first frame that fits is 2:8: set frames=\['2:8', '2:4'\]\.",
        ),
    ],
    ids=str,
)
def test_a_plan_of_nothing_says_why(config, says):
    if says is None:
        assert Plan.of(Toy(), config).targets == ()
        return
    with pytest.raises(ValueError, match=says) as error:
        Plan.of(Toy(), config)
    assert "Leave this weight out" not in str(error.value)


@pytest.mark.parametrize("text", ["3:7", "2:4-transposable", "block:4x3:0.5"])
def test_a_pattern_that_does_not_fit_is_refused_with_the_reason_of_each_shape_once(text):
    model = classifier(hidden_size=18, intermediate_size=34)
    reasons = set()
    for layer in find_layers(model):
        with pytest.raises(ValueError, match="A weight of shape") as error:
            parse(text).check(layer.shape)
        reasons.add(str(error.value).partition(" Leave ")[0])
    with pytest.raises(ValueError, match="does not fit 12 layers") as error:
        Plan.of(model, NxMConfig("asp", text))
    assert len(reasons) == 3 and all(str(error.value).count(reason) == 1 for reason in reasons)
    assert str(error.value).count(" Leave ") == 1


def test_plans_of_the_same_layers_are_equal_and_print_without_the_model():
    plan = Plan.of(Toy(), NxMConfig("asp"))
    assert replace(plan, model=torch.nn.Module(), whole=torch.nn.Module()) == plan
    assert replace(plan, targets=plan.targets[1:]) != plan
    assert not any(f"{name}=" in repr(plan) for name in ("model", "whole", "shards"))


def test_the_part_of_a_target_is_that_of_its_layer_in_the_processes_of_the_plan():
    with group_of_one() as group:
        model = Toy()
        fully_shard(model, mesh=group.mesh)
        plan = Plan.of(model, NxMConfig("asp", "unstructured:0.5"))
        assert plan.shards and replace(plan, shards=None) == plan  # its layers say as much
        for target in plan.targets:
            assert target.part == WeightPart(plan.shards, target.layer) and target.part.layer is target.layer
            assert target.part.shards is plan.shards is target.shards and replace(target, shards=None) == target
            assert target.pattern_here == target.part.pattern(target.pattern) != target.pattern
            assert torch.equal(target.matrix(), local(target.layer.weight))
        assert not plan.holds_pattern()
        for target in plan.targets:
            with torch.no_grad():
                target.matrix().copy_(target.pattern.project(target.matrix()))
        assert plan.holds_pattern()
