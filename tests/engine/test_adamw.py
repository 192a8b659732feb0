"""`nxm_hf.AdamW`: the bits of torch's fused AdamW, with every recipe, and its state dicts both ways."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from transformers.pytorch_utils import Conv1D

from nxm_hf import AdamW, NxMConfig, attach
from nxm_hf.engine.kept_state import KeptState
from nxm_hf.layers.sharding import local
from nxm_hf.methods import Masked
from nxm_hf.methods.schedules import ALWAYS, NEVER
from nxm_hf.solvers import base, reference_only
from nxm_hf.solvers.masked_adamw import can_step_kept, fits_kernel
from tests.support.grids import BOTH_WINDOWS, FEW, SPARSE, WINDOW, pairs
from tests.support.group_of_one import group_of_one
from tests.support.method_runs import TWO_FOUR
from tests.support.step_views import Noting
from tests.support.toy_training import TOTAL, Toy, adamw, load_run, loss_at, same, save_run, short, train, weights

SETTINGS = dict(lr=0.02, weight_decay=0.1)


@pytest.fixture(autouse=True)
def kernels_for_every_size(monkeypatch):
    monkeypatch.setattr(base, "MIN_NUMEL", 0)


def ours(model, **settings):
    return AdamW(model.parameters(), **{**SETTINGS, **settings})


def fused(model, **settings):
    return adamw(model, fused=True, **settings)


def moments(optimizer):
    states = optimizer.state_dict()["state"].values()
    assert all(type(state) is dict for state in states), "others may pickle it"
    return [value for state in states for value in state.values()]


def masks_itself(model):
    """Whether the last step has masked gradients itself: those of pruned entries are still there."""
    return any(bool(weight.grad[weight == 0].any()) for weight in (linear.weight for linear in model.linears))


# Plain steps


@pytest.mark.parametrize("settings", [{}, {"amsgrad": True}, {"maximize": True}, {"betas": (0.3, 0.9), "eps": 1e-3}])
def test_plain_steps_are_those_of_fused_adamw(settings):
    models = Toy(), Toy()
    optimizers = ours(models[0], **settings), fused(models[1], **settings)
    for _ in zip(
        *(train(model, optimizer, 0, 5) for model, optimizer in zip(models, optimizers, strict=True)), strict=True
    ):
        assert same(*(model.state_dict() for model in models))
    assert same(*map(moments, optimizers))


@pytest.mark.parametrize("form", [{"foreach": True}, {"fused": False}, {"differentiable": True}, {"fused": True}])
def test_a_form_of_the_step_that_is_asked_for_is_taken(form):
    optimizer = ours(Toy(), **form)
    assert {name: optimizer.param_groups[0][name] for name in form} == form
    assert bool(optimizer.param_groups[0]["fused"]) is form.get("fused", False)


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 0.5},
        {"betas": (0.5, 0.25)},
        {"eps": 0.5},
        {"weight_decay": 0.5},
        *({name: True} for name in ("amsgrad", "maximize", "foreach", "capturable", "differentiable", "fused")),
        {"foreach": False, "fused": False},
    ],
    ids=str,
)
def test_arguments_and_their_defaults_are_those_of_torch(settings):
    optimizers = [kind([nn.Parameter(torch.ones(2))], **settings) for kind in (AdamW, torch.optim.AdamW)]
    free = settings.keys().isdisjoint(("foreach", "capturable", "differentiable", "fused"))
    expected = optimizers[1].defaults | ({"fused": True} if free else {})
    assert optimizers[0].defaults == expected
    assert {name: optimizers[0].param_groups[0][name] for name in expected} == expected
    ours, theirs = (inspect.signature(type(optimizer)).parameters for optimizer in optimizers)
    assert ours["kept_moments"].default is AdamW.kept_moments is True, "also of optimizers that older versions pickled"
    shared = [name for name in ours if name != "kept_moments"]
    assert {name: ours[name].default for name in shared} == {name: theirs[name].default for name in shared}


def test_the_fused_step_is_the_default_where_torch_has_it_for_all_parameters():
    assert ours(Toy()).param_groups[0]["fused"] is True and ours(Toy()).defaults["fused"] is True
    for parameter in (torch.ones(2, dtype=torch.complex64), torch.ones(2, device="meta")):
        optimizer = AdamW([nn.Parameter(torch.ones(2)), nn.Parameter(parameter)])
        assert not optimizer.param_groups[0]["fused"]
    spread = torch.ones(2, 8)[:, ::2]  # torch's fused step on a CPU takes entries in gaps for those of the weight
    for parameters in ([spread], [torch.ones(2), spread]):
        assert not AdamW(map(nn.Parameter, parameters)).param_groups[0]["fused"]
    assert AdamW([nn.Parameter(torch.ones(2, 8).t())]).param_groups[0]["fused"] is True
    half = AdamW([nn.Parameter(torch.ones(4, dtype=torch.bfloat16))], lr=0.1)
    half.param_groups[0]["params"][0].grad = torch.ones(4, dtype=torch.bfloat16)
    half.step()
    assert half.param_groups[0]["params"][0].tolist() != [1.0] * 4


def test_each_group_keeps_the_form_that_it_asks_for():
    forms = ({}, {"foreach": True}, {"fused": False}, {"fused": True})
    optimizer = AdamW([{"params": [nn.Parameter(torch.ones(2))], **form} for form in forms])
    assert [group["fused"] for group in optimizer.param_groups] == [True, None, False, True]
    assert [group["foreach"] for group in optimizer.param_groups] == [None, True, None, None]


@pytest.mark.parametrize("change", [{"amsgrad": True}, {"fused": False}, {"betas": (0.4, 0.9)}], ids=str)
@pytest.mark.parametrize("after", ["a step", "an interrupted one"])
def test_a_setting_that_is_changed_between_steps_is_heard_at_the_next(change, after):
    pytest.importorskip("numba", reason="the kernels for CPUs need numba")
    parameter, mask = nn.Parameter(torch.ones(8, 16)), torch.ones(8, 16).bool()
    optimizer = AdamW([parameter])
    for changed in ({}, change, {name: optimizer.param_groups[0][name] for name in change}):
        optimizer.param_groups[0].update(changed)
        parameter.grad = torch.ones(8, 16)
        assert optimizer.mask_next_step(parameter, mask) is (changed is not change)
        if after == "a step" and changed is not change:
            optimizer.step()
        else:
            optimizer.forget_masks()


@pytest.mark.parametrize(
    ("params", "settings", "answer"),
    [
        (nn.Linear(2, 2), {}, "got a Linear. Write AdamW(model.parameters())."),
        ([], {"lr": "1e-3"}, "lr of AdamW must be a number; got '1e-3'. Write lr=0.001."),
        ([], {"eps": "1e-9"}, "eps of AdamW must be a number; got '1e-9'. Write eps=1e-09."),
        ([], {"lr": "fast"}, "lr of AdamW must be a number; got 'fast'. Write lr=0.001."),
        ([], {"betas": (0.9, 0.99, 0.999)}, "betas of AdamW must be two numbers; got (0.9, 0.99, 0.999). Write"),
        ([], {"betas": 0.9}, "betas of AdamW must be two numbers; got 0.9. Write betas=(0.9, 0.999)."),
        ([], {"weight_decay": "none"}, "weight_decay of AdamW must be a number; got 'none'. Write weight_decay=0.01."),
    ],
)
def test_a_model_or_a_text_as_an_argument_is_answered_with_what_to_write(params, settings, answer):
    with pytest.raises(TypeError) as raised:
        AdamW(params, **settings)
    assert answer in str(raised.value)


def test_groups_closures_and_schedules_work_as_with_torch():
    models = Toy(), Toy()
    ends = []
    for model, make in zip(models, (AdamW, torch.optim.AdamW), strict=True):
        head = {"params": [*model.head.parameters()], "weight_decay": 0.0, "lr": 0.1}
        optimizer = make([{"params": [*model.blocks.parameters()]}, head], **SETTINGS, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = loss_at(0, model)
            loss.backward()
            return loss

        losses = []
        for _ in range(4):
            losses.append(optimizer.step(closure).item())
            schedule.step()
        ends.append(losses)
    assert ends[0] == ends[1] and same(*(model.state_dict() for model in models))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_a_copy_of_the_optimizer_takes_steps(copied):
    optimizer = copied(ours(Toy()))
    (group,) = optimizer.param_groups
    for parameter in group["params"]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert optimizer.state[group["params"][0]]["step"] == 1


# Steps with an engine


@pairs(recipe=SPARSE, window=BOTH_WINDOWS, pattern=["2:4", "unstructured:0.5"])
def test_a_training_has_the_bits_of_one_with_fused_adamw(recipe, window, pattern):
    if recipe in ("structure-decay", "gradual"):
        pattern = "2:4"
    runs = []
    for make in (ours, fused):
        model = Toy()
        optimizer = make(model)
        engine = attach(model, optimizer, short(recipe, pattern, **window), total_steps=TOTAL)
        runs.append((model, optimizer, engine, train(model, optimizer, 0, TOTAL)))
    (model, optimizer, engine, steps), (other, other_optimizer, other_engine, other_steps) = runs
    for _ in zip(steps, other_steps, strict=True):
        assert same(model.state_dict(), other.state_dict())
        assert same(moments(optimizer), moments(other_optimizer))
        assert same(engine.state_dict(), other_engine.state_dict())
    engine.finish()
    other_engine.finish()
    assert same(model.state_dict(), other.state_dict())


@pytest.mark.parametrize("asked", [True, False])
def test_moments_of_kept_entries_alone_are_stored_where_that_is_asked_for(asked):
    """Dense ones have the same bits, so that no test of weights sees the difference."""
    if not can_step_kept():
        pytest.skip("moments of kept entries need numba and AVX-512")
    model = Toy()
    optimizer = ours(model, kept_moments=asked)
    attach(model, optimizer, "asp", total_steps=4)
    for _ in train(model, optimizer, 0, 3):
        pass
    states = [optimizer.state[linear.weight] for linear in model.linears]
    assert [isinstance(state, KeptState) and state.is_packed for state in states] == [asked] * len(states)


@pytest.mark.parametrize("final", [False, True])
def test_moments_of_a_final_mask_are_packed_at_the_next_step_however_often_they_were_read(final):
    if not can_step_kept():
        pytest.skip("moments of kept entries need numba and AVX-512")
    parameter, mask = nn.Parameter(torch.ones(8, 16)), torch.ones(8, 16).bool()
    optimizer, packed = AdamW([parameter]), []
    for step in range(5):
        if step == 4 and final:
            optimizer.mask_is_final(parameter)
        parameter.grad = torch.ones(8, 16)
        assert optimizer.mask_next_step(parameter, mask)
        optimizer.step()
        packed.append(isinstance(optimizer.state[parameter], KeptState))
        optimizer.state[parameter]["exp_avg"].sum()
    assert packed == [True, False, True, False, final], "after the second read, two steps pass"


@pytest.mark.parametrize("recipe", ["asp", "rigl", "set"])
def test_a_frozen_mask_is_left_to_the_step(recipe):
    """A second pass would change no bit, and no other test would see it."""
    pytest.importorskip("numba", reason="the kernels for CPUs need numba")
    for make, expected in ((ours, True), (fused, False)):
        model = Toy()
        optimizer = make(model)
        attach(model, optimizer, recipe, total_steps=2)
        assert [masks_itself(model) for _ in train(model, optimizer, 0, 1)] == [expected]
    with reference_only():
        model = Toy()
        optimizer = ours(model)
        attach(model, optimizer, recipe, total_steps=2)
        assert [masks_itself(model) for _ in train(model, optimizer, 0, 1)] == [False]


def gradients_after_a_step(config, make):
    model = Toy()
    optimizer = make(model)
    attach(model, optimizer, config, total_steps=1)
    assert list(train(model, optimizer, 0, 1)) == [1]
    return [linear.weight.grad for linear in model.linears]


@pytest.mark.parametrize(
    ("settings", "make", "left"),
    [
        ({}, ours, True),
        ({"grad_scale": 0.5}, ours, False),  # after the step, the update is scaled with the old dense weight
        ({}, fused, False),
        ({}, lambda model: ours(model, amsgrad=True), False),
    ],
)
def test_a_pull_is_left_to_the_step(settings, make, left):
    """A pass before the step changes the gradient, and no other bit."""
    pytest.importorskip("numba", reason="the kernels for CPUs need numba")
    config = NxMConfig("sr-ste", "2:4", {"decay": 0.5, **settings})
    assert same(gradients_after_a_step(config, make), gradients_after_a_step("ste", make)) is left


def test_a_pull_of_an_interrupted_step_is_forgotten():
    pytest.importorskip("numba", reason="the kernels for CPUs need numba")
    ends = []
    for interrupts in (True, False):
        model = Toy()
        optimizer = ours(model)
        engine = attach(model, optimizer, NxMConfig("sr-ste", "2:4", {"decay": 0.5}), total_steps=3)
        [*train(model, optimizer, 0, 2)]
        if interrupts:
            loss_at(5, model).backward()
            engine.before_step(engine._hooks.clock())  # and then something raises
            model.zero_grad()
        [*train(model, optimizer, 2, 3)]
        ends.append(weights(model))
    assert same(*ends)


def test_no_pass_sets_zeros_after_a_step_that_has_masked():
    pytest.importorskip("numba", reason="the kernels for CPUs need numba")
    for make, expected in ((ours, {True}), (fused, {False})):
        noting = Noting(Masked(TWO_FOUR, refresh=NEVER, freeze=ALWAYS), [])
        model = Toy()
        optimizer = make(model)
        attach(model, optimizer, NxMConfig(recipe=noting), total_steps=1)
        assert list(train(model, optimizer, 0, 1)) == [1] and noting.answers("leaves_zeros", 1) == expected


@pytest.mark.parametrize(
    "settings", [{"amsgrad": True}, {"foreach": True}, {"fused": False}, {"betas": (0.4, 0.9)}], ids=str
)
def test_a_step_that_has_no_kernel_is_masked_by_the_engine(settings):
    models = Toy(), Toy()
    for model, make in zip(models, (ours, adamw), strict=True):
        optimizer = make(
            model, **({"fused": True} if make is adamw and settings.keys() & {"betas", "amsgrad"} else {}), **settings
        )
        attach(model, optimizer, "asp", total_steps=4)
        assert not any(masks_itself(model) for _ in train(model, optimizer, 0, 4))
    assert same(*map(weights, models))


def test_a_step_with_hooks_of_others_is_masked_by_the_engine():
    """They would see gradients that are not masked."""
    model = Toy()
    optimizer = ours(model)
    attach(model, optimizer, "asp", total_steps=4)
    optimizer.register_step_pre_hook(lambda *_: None)
    assert not any(masks_itself(model) for _ in train(model, optimizer, 0, 4))


def test_a_step_under_a_gradient_scaler_has_the_bits_of_fused_adamw():
    models = Toy(), Toy()
    for model, make in zip(models, (ours, fused), strict=True):
        optimizer, scaler = make(model), torch.amp.GradScaler("cpu", init_scale=2.0**10)
        engine = attach(model, optimizer, "asp", total_steps=4)
        for step in range(4):
            optimizer.zero_grad()
            scaler.scale(loss_at(step, model)).backward()
            if step == 1:
                model.blocks[0].up.weight.grad[0, 0] = torch.inf  # a step that is skipped
            scaler.step(optimizer)
            scaler.update()
        assert engine.step == 3
    assert same(*map(weights, models))


def test_a_mask_of_a_step_that_was_interrupted_is_not_used_by_a_later_one():
    pytest.importorskip("numba", reason="the kernels for CPUs need numba")
    model = Toy()
    optimizer = ours(model)
    engine = attach(model, optimizer, "asp", total_steps=4)
    for _ in train(model, optimizer, 0, 1):
        pass
    loss_at(1, model).backward()
    engine.before_step(engine._hooks.clock())  # and then something raises
    assert optimizer.waits_with_mask(model.linears[0].weight)
    engine.release()
    before = model.linears[0].weight.detach().clone()
    optimizer.step()
    weight = model.linears[0].weight
    assert not optimizer.waits_with_mask(weight) and bool((weight[before == 0] != 0).any())


# Resuming


@pytest.mark.parametrize("recipe", FEW)
@pytest.mark.parametrize("changes", [(ours, ours), (ours, fused), (fused, ours), (adamw, ours)])
def test_a_run_resumes_bit_for_bit_and_may_change_between_the_optimizers(recipe, changes):
    """AdamW of torch that is not fused begins with other bits; what it leaves is resumed all the same."""
    before, after = changes
    model = Toy()
    optimizer = before(model)
    config = short(recipe, **WINDOW)
    engine = attach(model, optimizer, config, total_steps=TOTAL)
    saved = {}
    for step in train(model, optimizer, 0, TOTAL):
        saved[step] = save_run(model, optimizer, engine)
    for at in (2, 5, 9):
        again, stepper, resumed = load_run(saved[at], config, after)
        assert [group["fused"] for group in stepper.param_groups] == [True]
        for step in train(again, stepper, at, TOTAL):
            if before is not adamw:
                assert same(resumed.state_dict(), load_run(saved[step], config, after)[2].state_dict())
        assert before is adamw or same(weights(again), weights(model))


def test_a_state_dict_keeps_the_form_of_the_step_and_loads_all_else():
    source = adamw(Toy(), foreach=True)
    source.param_groups[0]["lr"] = 0.5
    optimizer = ours(Toy())
    optimizer.load_state_dict(source.state_dict())
    (group,) = optimizer.param_groups
    assert (group["lr"], group["fused"], group["foreach"]) == (0.5, True, None)
    other = fused(Toy())
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0].keys() == group.keys()
    with pytest.raises(ValueError, match="parameter groups"):
        optimizer.load_state_dict({**source.state_dict(), "param_groups": []})


# Shards


def test_the_shard_of_a_weight_is_stepped_as_a_whole_weight():
    pytest.importorskip("numba", reason="the kernels for CPUs need numba")
    whole = nn.Parameter(torch.randn(8, 16))
    mask, gradients = torch.rand(8, 16) > 0.5, [torch.randn(8, 16) for _ in range(3)]
    with group_of_one() as shards, torch.no_grad():
        part = nn.Parameter(DTensor.from_local(whole.detach().clone(), shards.mesh, [Shard(0)]))
        optimizers = AdamW([part]), AdamW([whole])
        for gradient in gradients:
            part.grad, whole.grad = DTensor.from_local(gradient, shards.mesh, [Shard(0)]), gradient
            for optimizer, parameter in zip(optimizers, (part, whole), strict=True):
                assert optimizer.mask_next_step(parameter, mask)
                optimizer.step()
        states = [optimizer.state[each] for optimizer, each in zip(optimizers, (part, whole), strict=True)]
        assert isinstance(states[0]["exp_avg"], DTensor)
        assert same([part.to_local(), states[0]["exp_avg"].to_local()], [whole.detach(), states[1]["exp_avg"]])
    assert not bool(whole[~mask].any())


@pytest.mark.parametrize("recipe", FEW)
def test_a_training_of_shards_has_the_bits_of_one_with_fused_adamw(recipe):
    """In the last phase, where the mask is frozen, gradients are left unmasked by one of the two alone."""
    config, ends, left = short(recipe, **WINDOW), [], []
    for make in (ours, fused):
        with group_of_one() as shards:
            model = Toy()
            for each in (*model.blocks, model):
                fully_shard(each, mesh=shards.mesh)
            optimizer = make(model)
            engine = attach(model, optimizer, config, total_steps=TOTAL)
            for _ in train(model, optimizer, 0, TOTAL):
                pass
            parts = [(local(linear.weight.detach()), local(linear.weight.grad)) for linear in model.linears]
            left.append(any(bool(gradient[weight == 0].any()) for weight, gradient in parts))
            engine.finish()
            states = [optimizer.state[linear.weight] for linear in model.linears]
            ends.append([local(value).clone() for state in states for value in state.values()])
            ends[-1] += [weight.clone() for weight, _ in parts]
    assert same(*ends) and left == [fits_kernel(torch.ones(8, 16), torch.ones(8, 16).bool()), False]


def test_a_parameter_of_another_optimizer_or_without_a_gradient_is_not_masked():
    parameter, mask = nn.Parameter(torch.randn(8, 16)), torch.ones(8, 16).bool()
    optimizer = AdamW([parameter])
    assert not optimizer.mask_next_step(parameter, mask)
    other = nn.Parameter(torch.randn(8, 16))
    other.grad = torch.ones(8, 16)
    assert not optimizer.mask_next_step(other, mask)


def test_a_weight_that_is_stored_transposed_is_masked_by_the_engine():
    """Its mask is stored the other way round."""
    ends = []
    for make in (ours, fused):
        model = Toy()
        for block in model.blocks:
            block.up = Conv1D(16, 8)
            block.down = Conv1D(8, 16)
        torch.manual_seed(0)
        for layer in model.linears:
            nn.init.normal_(layer.weight, std=0.3)
        optimizer = make(model)
        engine = attach(model, optimizer, "asp", total_steps=3)
        assert not any(masks_itself(model) for _ in train(model, optimizer, 0, 3))
        engine.finish()
        ends.append(weights(model))
    assert same(*ends)
