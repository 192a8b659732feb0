"""What cannot be trained is refused before the first step."""

import math
from dataclasses import replace

import pytest
import torch
from torch.distributed.fsdp import fully_shard

from nxm_hf import NxMConfig, attach
from nxm_hf.engine.requirements import (
    check_held,
    check_shards,
    check_state,
    check_trainable,
    warn_of_end,
    warn_of_skipped,
)
from nxm_hf.layers.plan import Plan
from tests.support.custom_methods import Shrinking
from tests.support.grids import EACH_SPARSE_RECIPE, WINDOWS
from tests.support.group_of_one import group_of_one
from tests.support.toy_training import (
    TOTAL,
    Toy,
    adamw,
    loss_at,
    same,
    short,
    train,
    weights,
)


def test_weights_that_are_frozen_are_an_error_that_names_them():
    model = Toy()
    model.blocks[0].up.weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"1 layers .*frozen.*exclude=.*blocks\.0\.up\."):
        attach(model, adamw(model), "ste", total_steps=1)
    attach(model, adamw(model), NxMConfig("ste", exclude=["blocks.0.up"]), total_steps=1)


def test_weights_that_the_optimizer_does_not_hold_are_an_error_that_names_them():
    model = Toy()
    held = [p for p in model.parameters() if p is not model.blocks[1].down.weight]
    with pytest.raises(ValueError, match=r"not held by the optimizer.*blocks\.1\.down\."):
        attach(model, torch.optim.AdamW(held), "ste", total_steps=1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_in_half_precision_are_an_error_that_says_what_to_do(dtype):
    model = Toy(dtype=dtype)
    with pytest.raises(ValueError, match=r"4 layers .*half-precision.*dtype=torch.float32.*bf16=True.*blocks\.0\.up"):
        attach(model, adamw(model), "ste", total_steps=1)


@EACH_SPARSE_RECIPE
def test_what_is_refused_is_left_as_it_was(recipe):
    model = Toy()
    with torch.no_grad():
        model.blocks[1].down.weight[0, 0] = math.nan
    before, optimizer = weights(model), adamw(model)
    with pytest.raises(ValueError, match=r"blocks\.1\.down"):
        attach(model, optimizer, short(recipe), total_steps=1)
    assert same(before, weights(model)) and not optimizer._optimizer_step_pre_hooks


@EACH_SPARSE_RECIPE
@WINDOWS
def test_nan_in_a_weight_is_an_error_that_names_the_layer_before_the_first_step(recipe, window):
    model = Toy()
    with torch.no_grad():
        model.blocks[0].down.weight[3, 5] = math.nan
    with pytest.raises(ValueError, match=r"1 layers .* hold NaN.*blocks\.0\.down\."):
        attach(model, adamw(model), short(recipe, **window), total_steps=TOTAL)


@EACH_SPARSE_RECIPE
def test_nan_in_a_weight_is_an_error_that_names_layer_and_step_when_a_mask_is_due(recipe):
    """Where the mask is frozen none is due, and it is found at the end."""
    model = Toy()
    optimizer = adamw(model)
    engine = attach(model, optimizer, short(recipe), total_steps=TOTAL)
    for _ in train(model, optimizer, 0, 4):
        pass
    weight = model.blocks[0].down.weight
    optimizer.zero_grad()
    loss_at(4, model).backward()
    weight.grad.view(-1)[weight.detach().abs().argmax()] = math.nan
    found = r"Layer blocks\.0\.down, step [45]: Scores hold 1 NaN of 128|blocks\.0\.down holds 1 entries that are NaN"
    with pytest.raises(ValueError, match=found):
        optimizer.step()
        engine.finish()


@pytest.mark.parametrize(("every", "window", "warned"), [(13, {}, True), (12, {}, False), (7, {"warmup": 0.5}, True)])
def test_resets_that_never_come_are_warned_of_once_with_the_number_to_write(every, window, warned, caplog):
    model = Toy()
    attach(model, adamw(model), NxMConfig("reset", settings={"every": every}, **window), total_steps=12)
    found = [message for message in caplog.messages if "never reset" in message]
    assert len(found) == warned
    steps = 6 if window else 12
    assert not warned or f"every={every} is longer than the {steps} steps" in found[0]
    assert not warned or f"Write every={steps // 2} or less." in found[0]


def test_in_a_training_of_one_step_pruned_weights_can_be_reset_at_each(caplog):
    config, model = NxMConfig("reset", settings={"every": 2}), Toy()
    attach(model, adamw(model), config, total_steps=1)
    assert [message.endswith("Write every=1 or less.") for message in caplog.messages if "never reset" in message] == [
        True
    ]


def test_weights_that_are_frozen_under_an_adapter_have_to_be_pruned_before():
    model = Toy().requires_grad_(False)
    model._hf_peft_config_loaded = True
    with pytest.raises(ValueError, match=r'^4 layers .* under an adapter and dense\. .*nxm_hf\.prune\(model, "2:4"\)'):
        check_trainable(Plan.of(model, NxMConfig("ste")))
    check_trainable(Plan.of(model.requires_grad_(True), NxMConfig("ste")))


def test_an_optimizer_need_not_hold_layers_that_are_all_frozen():
    model = Toy()
    plan, optimizer = Plan.of(model, NxMConfig("ste")), torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
    with pytest.raises(ValueError, match=r"^4 layers to prune are not held by the optimizer"):
        check_held(plan, optimizer)
    for target in plan.targets:
        target.layer.weight.requires_grad_(False)
    check_held(plan, optimizer)
    check_held(plan, adamw(model.requires_grad_(True)))


def test_a_nan_in_a_part_of_a_sharded_weight_is_found():
    with group_of_one() as group:
        model = Toy()
        fully_shard(model, mesh=group.mesh)
        plan = Plan.of(model, NxMConfig("ste"))
        check_trainable(plan)
        with torch.no_grad():
            plan.targets[2].matrix()[1, 1] = math.nan
        with pytest.raises(ValueError, match=r"^1 layers .* hold NaN.* They are: blocks\.1\.up\."):
            check_trainable(plan)


@pytest.mark.parametrize(
    ("step", "pruned", "says"),
    [
        (4, 0.0, "Training ends at step 4 of 5, in the phase 'recipe'; pruning now takes 0.0000 of the norm"),
        (5, 0.15, "ADMM has not converged: pruning takes 0.1500 of the norm of the weights, and 0.7500 of the last"),
        (5, 0.1, None),
        (6, 0.05, None),
    ],
)
def test_an_end_is_warned_of_if_it_is_early_or_if_pruning_takes_more_than_a_tenth(step, pruned, says, caplog):
    assert warn_of_end(step, 5, "recipe", pruned, 0.75) is (says is not None)
    assert [message.startswith(says) for message in caplog.messages] == [True] * (says is not None)


def test_layers_that_stay_dense_are_told_of_with_their_share(caplog):
    model = Toy()
    model.blocks[0].up = torch.nn.Linear(8, 16)
    model.blocks[0].down = torch.nn.Linear(16, 6)
    model.blocks[0].odd = torch.nn.Linear(6, 8)
    plan = Plan.of(model, NxMConfig("ste", on_indivisible="skip"))
    warn_of_skipped(plan)
    weights_of_blocks = [layer.weight.numel() for block in model.blocks for layer in block.children()]
    assert len(caplog.messages) == 1 and "blocks.0.odd" in caplog.messages[0]
    assert 0 < plan.skipped_share < 48 / sum(weights_of_blocks) + 1e-9
    assert f"They hold {100 * plan.skipped_share:.1f} % of the model's weights." in caplog.messages[0]
    caplog.clear()
    warn_of_skipped(Plan.of(Toy(), NxMConfig("ste")))
    assert not caplog.messages


def test_weights_have_to_be_sharded_by_rows_and_all_of_them():
    config = NxMConfig("ste")
    check_shards(Plan.of(Toy(), config), config)  # which may be sharded later
    with group_of_one() as group:
        for left_out in (set(), {"blocks.0.up", "blocks.1.down"}):
            model = Toy()
            ignored = {model.get_submodule(name).weight for name in left_out}
            fully_shard(model, mesh=group.mesh, ignored_params=ignored)
            plan = Plan.of(model, config)
            if not left_out:
                check_shards(plan, config)
                continue
            with pytest.raises(ValueError, match=r"^blocks\.0\.up, blocks\.1\.down are not sharded by rows; call"):
                check_shards(plan, config)


def test_a_method_that_may_look_at_whole_weights_is_refused_where_they_are_sharded():
    model, refused = Toy(), NxMConfig(recipe=Shrinking())
    with pytest.raises(ValueError, match=r"^Shrinking\(\) may look at whole weights, and FSDP2 shards them; use DDP"):
        check_shards(Plan.of(model, refused), refused)
    for pattern, fits in (("2:4", True), ("2:4-transposable", False)):
        config = NxMConfig("admm", pattern, settings={"rho": "quantile"})
        if fits:
            check_shards(Plan.of(model, config), config)
            continue
        with pytest.raises(ValueError, match=r'may cut those of 2:4-transposable; write settings={"rho": "auto"}'):
            check_shards(Plan.of(model, config), config)


@pytest.mark.parametrize("moved", [["blocks.0.up"], ["blocks.0.up", "blocks.1.down"]], ids=len)
def test_weights_that_are_offloaded_are_an_error_that_names_them(moved):
    model = Toy()
    for name in moved:
        model.get_submodule(name).to("meta")
    with pytest.raises(ValueError, match=rf"^{len(moved)} layers .* on the meta device, .* device_map=.*blocks\.0\.up"):
        attach(model, adamw(model), "ste", total_steps=1)


def test_layers_that_are_all_frozen_may_keep_the_pattern_that_they_hold():
    model = Toy().requires_grad_(False)
    plan = Plan.of(model, NxMConfig("ste"))
    with pytest.raises(ValueError, match=r"^4 layers to prune are frozen \(requires_grad=False\)"):
        check_trainable(plan)
    for target in plan.targets:
        target.layer.weight.copy_(target.pattern.project(target.layer.weight))
    check_trainable(plan)
    model.blocks[0].up.requires_grad_(True)
    with pytest.raises(ValueError, match=r"^3 layers to prune are frozen"):
        check_trainable(plan)


def test_a_container_that_is_pruned_with_data_is_refused_where_weights_are_sharded():
    plain = Plan.of(Toy(), NxMConfig("ste"))
    inside = replace(plain, whole=torch.nn.Sequential(plain.model))
    with_data = NxMConfig("admm", settings={"scores": "sparsegpt"})
    for plan, config in ((plain, NxMConfig("ste")), (inside, NxMConfig("ste")), (plain, with_data)):
        check_shards(plan, config)
    with pytest.raises(ValueError, match=r"^admm prunes with sparsegpt here, and FSDP2 shards a Sequential as a whole"):
        check_shards(inside, with_data)


def test_a_state_fits_if_its_matrices_and_biases_have_the_shapes_of_the_model():
    model = Toy()
    model.blocks[0].down = torch.nn.Linear(16, 8, bias=False)
    targets = Plan.of(model, NxMConfig("ste")).targets
    up, without_bias = targets[:2]
    fitting = {target.name: {"weight": torch.zeros(target.layer.shape)} for target in targets}
    check_state(targets, fitting)

    def state(target, **slots):
        return {**fitting, target.name: {**fitting[target.name], **slots}}

    fine = {"mask": torch.zeros(16, 8), "rho": torch.tensor(1.0), "sums": torch.zeros(5), "bias": torch.zeros(16)}
    check_state(targets, state(up, **fine))
    for target, slot, tensor, says in (
        (up, "mask", torch.zeros(1, 8), r"is \(1, 8\) in the state, and this model needs \(16, 8\)\. Resume from"),
        (up, "mask", torch.zeros(16, 8, 1), r"is \(16, 8, 1\) in the state"),
        (up, "weight", torch.zeros(8), r"is \(8,\) in the state, and this model needs \(16, 8\)"),
        (up, "bias", torch.zeros(1), r"is \(1,\) in the state, and this model needs \(16,\)"),
        (up, "bias", torch.zeros(()), r"is \(\) in the state, and this model needs \(16,\)"),
        (without_bias, "bias", torch.zeros(8), r"is \(8,\) in the state, and this model has none\. Resume"),
        (without_bias, "bias", torch.zeros(()), r"is \(\) in the state, and this model has none"),
    ):
        with pytest.raises(ValueError, match=rf"^{target.name}/{slot} {says}"):
            check_state(targets, state(target, **{slot: tensor}))
    for missing in ({}, {up.name: {"mask": torch.zeros(16, 8)}}):
        with pytest.raises(ValueError, match=rf"^The state holds no weight of {up.name}\. Resume from another"):
            check_state(targets, missing)
