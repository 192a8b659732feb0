"""The hooks around `optimizer.step()`: gradient scalers, skipped steps, accumulation and closures."""

import gc
import logging
import math

import pytest
import torch
from torch import nn

from nxm_hf import NxMConfig, attach
from nxm_hf.engine.step_hooks import StepHooks, attached_handlers, hooks_of
from tests.support.grids import BOTH_WINDOWS, EACH_SPARSE_RECIPE, SPARSE, WINDOW, pairs
from tests.support.models import assert_equal_weights
from tests.support.toy_training import (
    IMPLEMENTATIONS,
    TOTAL,
    Toy,
    adamw,
    all_tensors,
    assert_sparse,
    loss_at,
    same,
    short,
)

EACH_IMPLEMENTATION = pytest.mark.parametrize("optimizer", IMPLEMENTATIONS)


def scaled_step(step, model, optimizer, scaler, overflow=False, clip=None):
    """One step under a gradient scaler, as a plain loop does it."""
    optimizer.zero_grad()
    scaler.scale(loss_at(step, model)).backward()
    if overflow:
        model.blocks[1].up.weight.grad[0, 0] = math.inf
    if clip is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    scaler.step(optimizer)
    scaler.update()


@pairs(recipe=SPARSE, optimizer=IMPLEMENTATIONS, window=BOTH_WINDOWS, clip=[None, 1.0])
def test_a_skipped_step_edits_nothing_and_does_not_count(recipe, window, optimizer, clip):
    """Pitfall 8: an overflow leaves weights, state and clock as they are, even when a fused kernel skips in silence."""
    model = Toy()
    stepper = IMPLEMENTATIONS[optimizer](model)
    engine = attach(model, stepper, short(recipe, **window), total_steps=TOTAL)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(TOTAL):
        if step in (0, 3, 4, 8):
            before = all_tensors(model, engine)
            scaled_step(step, model, stepper, scaler, overflow=True, clip=clip)
            assert engine.step == step and same(before, all_tensors(model, engine))
        scaled_step(step, model, stepper, scaler, clip=clip)
        assert engine.step == step + 1
    engine.finish()
    assert_sparse(model)


@pairs(recipe=SPARSE, optimizer=IMPLEMENTATIONS, clip=[None, 1.0])
def test_pulls_act_on_unscaled_gradients(recipe, optimizer, clip):
    """Pitfall 6: under a scale that is a power of two, training is bit for bit what it is without a scaler."""
    runs = []
    for scale in (1.0, 2.0**16):
        model = Toy()
        stepper = IMPLEMENTATIONS[optimizer](model)
        attach(model, stepper, short(recipe), total_steps=TOTAL)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale != 1)
        for step in range(TOTAL):
            scaled_step(step, model, stepper, scaler, clip=clip)
        runs.append(model)
    assert_equal_weights(*runs)


@EACH_IMPLEMENTATION
def test_skipped_steps_leave_the_run_that_never_had_them(optimizer):
    runs = []
    for skips in ((), (2, 5, 6)):
        model = Toy()
        stepper = IMPLEMENTATIONS[optimizer](model)
        attach(model, stepper, short("admm", **WINDOW), total_steps=TOTAL)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for step in range(TOTAL):
            if step in skips:
                scaled_step(step, model, stepper, scaler, overflow=True)
            scaled_step(step, model, stepper, scaler)
        runs.append(model)
    assert_equal_weights(*runs)


@EACH_IMPLEMENTATION
@pytest.mark.parametrize("skipped", [{4}, {4, 5}, {3, 6, 9}, {2, 3, 4, 9, 10}])
def test_an_event_due_at_a_skipped_step_happens_at_the_next_one_taken(optimizer, skipped):
    """Pitfall 8, by the Trainer's clock: `global_step` counts skipped steps too. The phases keep to it as well."""
    model = Toy()
    stepper = IMPLEMENTATIONS[optimizer](model)
    config = NxMConfig("admm", settings={"steps": 2}, settle=0.25, include=["blocks.0.up"])
    engine = attach(model, stepper, config, total_steps=TOTAL)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    updates = {}
    for step in range(TOTAL):
        engine.step = step
        scaled_step(step, model, stepper, scaler, overflow=step + 1 in skipped)
        if engine.phase == "recipe":
            updates[step + 1] = int(engine.tensors()["blocks.0.up/updates"]) - 1
    for done, count in updates.items():
        last_taken = max([step for step in range(1, done + 1) if step not in skipped], default=0)
        events = {min(t for t in range(2 * k, TOTAL + 1) if t not in skipped) for k in range(1, 5)}
        assert count == len([event for event in events if event <= last_taken]), f"after {done} steps"
    settled = min(step for step in range(9, TOTAL + 1) if step not in skipped)
    assert list(updates) == list(range(1, settled)) and engine.phase == "settle"


@EACH_SPARSE_RECIPE
def test_a_layer_without_a_gradient_gets_no_pull_and_does_no_harm(recipe):
    model = Toy()
    optimizer = adamw(model)
    engine = attach(model, optimizer, short(recipe), total_steps=TOTAL)
    before = [weight.clone() for _, weight in engine.trained_weights()]
    for step in range(TOTAL):
        optimizer.zero_grad()
        loss_at(step, model).backward()
        model.blocks[0].up.weight.grad = None
        optimizer.step()
    after = [weight for _, weight in engine.trained_weights()]
    assert not torch.equal(before[1], after[1])
    kept = engine.tensors().get("blocks.0.up/mask", torch.ones(1, dtype=torch.bool))
    assert torch.equal(torch.where(kept, before[0], 0), torch.where(kept, after[0], 0))
    engine.finish()
    assert_sparse(model)


@EACH_SPARSE_RECIPE
@pytest.mark.parametrize("parts", [2, 4])
def test_gradient_accumulation_counts_once(recipe, parts):
    """Pitfall 6: a pull is added once per optimizer step, whatever the number of micro-batches."""
    runs = []
    for split in (1, parts):
        model = Toy()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        engine = attach(model, optimizer, short(recipe), total_steps=TOTAL)
        for step in range(TOTAL):
            optimizer.zero_grad()
            for _ in range(split):  # the same batch in halves and quarters: powers of two, so that sums are exact
                (loss_at(step, model) / split).backward()
            optimizer.step()
        assert engine.step == TOTAL
        runs.append(model)
    assert_equal_weights(*runs)


def test_a_step_with_a_closure_is_an_error():
    model = Toy()
    optimizer = adamw(model)
    attach(model, optimizer, "ste", total_steps=2)
    loss_at(0, model).backward()
    for step in (lambda: optimizer.step(lambda: 0.0), lambda: optimizer.step(closure=lambda: 0.0)):
        with pytest.raises(ValueError, match=r"call step\(\) without it"):
            step()
    optimizer.step(None)


class Diary:
    """A handler that keeps the clocks that it is called with."""

    def __init__(self):
        self.before, self.after = [], []
        self.before_step, self.after_step = self.before.append, self.after.append


def hooked(total=3, optimizer=adamw, steps_per_epoch=None):
    """A parameter with a gradient, its optimizer, hooks and their handler."""
    model, diary = nn.Linear(2, 2), Diary()
    stepper = optimizer(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    hooks = StepHooks(stepper, total, steps_per_epoch, diary)
    hooks.attach()
    return stepper, hooks, diary


@pytest.mark.parametrize("optimizer", IMPLEMENTATIONS)
@pytest.mark.parametrize("steps_per_epoch", [None, 2])
def test_a_handler_sees_the_steps_done_before_and_after_each_step(optimizer, steps_per_epoch):
    stepper, hooks, diary = hooked(3, IMPLEMENTATIONS[optimizer], steps_per_epoch)
    for _ in range(3):
        stepper.step()
    assert [(clock.step, clock.last) for clock in diary.before] == [(0, 0), (1, 1), (2, 2)]
    assert [(clock.step, clock.last) for clock in diary.after] == [(1, 0), (2, 1), (3, 2)]
    assert hooks.step == hooks.last == 3
    for clock in diary.before + diary.after:
        assert (clock.total, clock.epoch, clock.loss_scale) == (3, steps_per_epoch, 1.0)
        assert clock.adaptive == (optimizer != "sgd")
    hooks.step = 7  # a Trainer counts steps that were skipped
    stepper.step()
    assert (diary.before[-1].step, diary.before[-1].last, diary.after[-1].step, diary.after[-1].last) == (7, 3, 8, 3)
    assert hooks.step == hooks.last == 8


def test_the_first_step_after_the_last_one_is_a_warning_and_no_other(caplog):
    stepper, hooks, diary = hooked(total=2)
    with caplog.at_level(logging.WARNING, logger="nxm_hf"):
        for step in range(5):
            stepper.step()
            assert len(caplog.messages) == (step >= 2)
    assert caplog.messages[0].startswith("Step 3 comes after the last one of total_steps=2: the recipe has ended.")
    assert len(diary.after) == hooks.step == 5


def test_hooks_are_known_by_their_optimizer_from_attach_to_detach():
    stepper, hooks, diary = hooked()
    other, others, other_diary = hooked()
    assert hooks_of(stepper) is hooks and hooks_of(other) is others and hooks_of(adamw(nn.Linear(2, 2))) is None
    assert [x for x in attached_handlers() if x in (diary, other_diary)] in ([diary, other_diary], [other_diary, diary])
    with pytest.raises(ValueError, match=r"has an engine already; call its release\(\) or finish\(\) first"):
        StepHooks(stepper, 3, None, Diary())
    hooks.detach()
    hooks.detach()
    assert hooks_of(stepper) is None and diary not in attached_handlers() and other_diary in attached_handlers()
    stepper.step()
    other.step()
    assert not diary.before and not diary.after and len(other_diary.after) == 1
    again = StepHooks(stepper, 3, None, diary)
    assert hooks_of(stepper) is None  # not before they are attached
    again.attach()
    stepper.step()
    assert len(diary.before) == len(diary.after) == 1


def test_hooks_go_with_their_optimizer():
    stepper, hooks, diary = hooked()
    del stepper, hooks
    gc.collect()
    assert diary not in attached_handlers()
