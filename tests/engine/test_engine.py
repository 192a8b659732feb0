"""The engine in plain loops: phases, the two views, skipped steps, resuming, and what it refuses."""

import copy
import json
import logging
import math
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
import transformers
from accelerate import Accelerator
from safetensors.torch import load, save
from torch import nn
from transformers import AlbertConfig, AlbertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification
from transformers.pytorch_utils import Conv1D

from nxm_hf import Engine, NxMConfig, attach, recipes, verify
from nxm_hf.methods import Masked
from nxm_hf.methods.schedules import Constant, Evenly, Every
from nxm_hf.patterns import NM, parse
from tests.support.models import assert_equal_weights, make_bert
from tests.support.toy_training import (
    Toy,
    adamw,
    bits,
    has_negative_zeros,
    loss_at,
    same,
    short,
    taken,
    train,
    trained,
    weights,
)

RECIPES = recipes.names()
SPARSE = [name for name in RECIPES if name != "dense"]
TOTAL = 12
WINDOW = {"warmup": 0.25, "settle": 0.25}  # of 12 steps: 3 dense, 6 of the recipe, 3 with the mask frozen
WINDOWS = pytest.mark.parametrize("window", [{}, WINDOW], ids=["whole", "warmup+settle"])
EACH = pytest.mark.parametrize("recipe", RECIPES)
EACH_SPARSE = pytest.mark.parametrize("recipe", SPARSE)


@dataclass(frozen=True)
class Spy:
    """A user's own method, with the four verbs and nothing of ours: magnitude pruning of the half, on the way out."""

    calls: list

    def init(self, weight, clock):
        self.calls.append(("init", clock.step, clock.total))
        return {"seen": torch.zeros(1)}

    def before_step(self, weight, state, clock):
        self.calls.append(("before", clock.step, clock.total))

    def after_step(self, weight, state, clock):
        self.calls.append(("after", clock.step, clock.total))
        state["seen"] += 1

    def finish(self, weight, state, clock):
        order = weight.reshape(-1, 4).abs().argsort(dim=-1, descending=True, stable=True)
        rank = order.argsort(dim=-1).reshape(weight.shape)
        weight.copy_(torch.where(rank < 2, weight, 0.0) + 0.0)


def plain(steps, make_optimizer=adamw):
    """A toy after plain training."""
    model = Toy()
    for _ in train(model, make_optimizer(model), 0, steps):
        pass
    return model


def everything(model, engine):
    """A copy of all tensors that a step could edit, by name."""
    return {name: tensor.clone() for name, tensor in {**model.state_dict(), **engine.tensors()}.items()}


def assert_sparse(model, pattern="2:4"):
    held = parse(pattern)
    for weight in weights(model):
        assert held.violations(weight) == 0 and not has_negative_zeros(weight)
        assert int(weight.count_nonzero()) <= held.kept(weight.shape)


# Phases


@pytest.mark.parametrize(
    ("total", "warmup", "settle"),
    [
        (12, 0.25, 0.25),
        (12, 0.0, 0.0),
        (13, 0.1, 0.3),
        (10, 0.5, 0.4),
        (7, 0.0, 0.5),
        (9, 0.34, 0.0),
        (20, 0.02, 0.02),
        (11, 0.17, 0.07),
    ],
)
def test_phases_begin_at_the_rounded_fractions(total, warmup, settle):
    """a = round(warmup T), e = T - round(settle T); the recipe's own clock runs from 0 to e - a between them."""
    a, e, calls = round(warmup * total), total - round(settle * total), []
    model = Toy()
    optimizer = adamw(model)
    config = NxMConfig(recipe=Spy(calls), include=["blocks.0.up"], warmup=warmup, settle=settle)
    engine = attach(model, optimizer, config, total_steps=total)
    phases = [engine.phase]
    for _ in train(model, optimizer, 0, total):
        phases.append(engine.phase)
    assert phases == [("warmup" if t < a else "settle" if e <= t and e < total else "recipe") for t in range(total + 1)]
    steps = [("before", t, e - a) if verb == 0 else ("after", t + 1, e - a) for t in range(e - a) for verb in (0, 1)]
    assert calls == [("init", 0, e - a), *steps]


@EACH_SPARSE
def test_until_warmup_ends_training_is_plain_bit_for_bit(recipe):
    model, reference = Toy(), Toy()
    optimizer = adamw(model)
    engine = attach(model, optimizer, short(recipe, **WINDOW), total_steps=TOTAL)
    assert_equal_weights(model, reference)
    for done, _ in zip(train(model, optimizer, 0, 3), train(reference, adamw(reference), 0, 3), strict=True):
        if done < 3:
            assert_equal_weights(model, reference)
            assert engine.phase == "warmup"
    assert engine.phase == "recipe"
    for (target, weight), expected in zip(engine.trained_weights(), weights(reference), strict=True):
        kept = weight != 0  # a recipe that keeps no dense weight has pruned by now; for others all are kept
        state = {slot for slot in ("dense", "r") if f"{target.name}/{slot}" in engine.tensors()}
        assert torch.equal(weight[kept], expected[kept]) and (kept.all() or not state)


@EACH_SPARSE
@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_once_settled_the_mask_is_the_one_that_was_shipped_then_and_stays(recipe, warmup):
    model = Toy()
    optimizer = adamw(model)
    engine = attach(model, optimizer, short(recipe, warmup=warmup, settle=0.5), total_steps=TOTAL)
    for _ in train(model, optimizer, 0, TOTAL // 2):
        pass
    assert engine.phase == "settle"
    settled = weights(model)
    assert_sparse(model)
    masks = [engine.tensors()[f"{target.name}/mask"].clone() for target in engine.plan.targets]
    for _ in train(model, optimizer, TOTAL // 2, TOTAL):
        for now, before, mask in zip(weights(model), settled, masks, strict=True):
            assert not now[~mask].any() and not has_negative_zeros(now)
            assert not torch.equal(now, before)
        for target, mask in zip(engine.plan.targets, masks, strict=True):
            assert torch.equal(engine.tensors()[f"{target.name}/mask"], mask)
    before = weights(model)
    engine.finish()
    assert same(before, weights(model))


@dataclass(frozen=True)
class Noted:
    """A schedule that notes when its event happened, by the clock of the recipe."""

    schedule: Evenly
    events: list

    def __call__(self, clock):
        happens = self.schedule(clock)
        self.events.extend([clock.step] * happens)
        return happens


@pytest.mark.parametrize(("warmup", "settle"), [(0.0, 0.0), (0.1, 0.4), (0.0, 0.5), (0.25, 0.0)])
@pytest.mark.parametrize("total", [40, 200, 330])
def test_admm_updates_evenly_and_for_the_last_time_when_the_recipe_ends(total, warmup, settle):
    method, events = recipes.make("admm", NM(2, 4), {}), []
    noting = replace(method, update=Noted(method.update, events))
    config = NxMConfig(recipe=noting, include=["blocks.0.up"], warmup=warmup, settle=settle)
    _, engine = trained(config, steps=total)
    length = total - round(settle * total) - round(warmup * total)
    gaps = [after - before for before, after in pairwise([0, *events])]
    assert len(events) == min(max(round(length / 80), 1), 50)
    assert events[-1] == length and max(gaps) - min(gaps) <= 1
    assert settle or int(engine.tensors()["blocks.0.up/updates"]) == len(events) + 1  # and the start "C"


@EACH_SPARSE
@pytest.mark.parametrize("total", [1, 2, 3])
def test_phases_shorter_than_a_step_still_end_sparse(recipe, total):
    for window in ({"warmup": 0.4, "settle": 0.5}, {"settle": 0.9}, {"warmup": 0.9, "settle": 0.05}):
        model, engine = trained(short(recipe, **window), steps=total)
        engine.finish()
        assert_sparse(model)


# The two views


@EACH_SPARSE
@WINDOWS
def test_at_every_step_the_deployed_view_is_sparse_and_the_training_view_comes_back(recipe, window):
    """Pitfalls 1 and 2: true zeros in what is shipped; and looking at it changes nothing."""
    model = Toy()
    optimizer = adamw(model)
    engine = attach(model, optimizer, short(recipe, **window), total_steps=TOTAL)
    for done in [0, *range(1, TOTAL + 1)]:
        if done:
            next(train(model, optimizer, done - 1, done))
        before = everything(model, engine)
        with engine.deployed():
            assert_sparse(model)
            shown = weights(model)
            state = engine.tensors()
            assert same(state, {name: before[name] for name in state}), "the state is that of the training view"
            with engine.deployed():
                assert same(shown, weights(model))
            assert same(shown, weights(model)), "an inner view does not end the outer one"
        assert same(before, everything(model, engine))
    engine.finish()
    assert same(shown, weights(model)), "what is finished is what was shown"


@EACH_SPARSE
def test_looking_at_the_deployed_view_does_not_change_the_training(recipe):
    quiet, _ = trained(short(recipe))
    model = Toy()
    optimizer = adamw(model)
    engine = attach(model, optimizer, short(recipe), total_steps=TOTAL)
    for _ in train(model, optimizer, 0, TOTAL):
        with engine.deployed():
            loss_at(0, model)
    assert_equal_weights(model, quiet)


@EACH_SPARSE
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_an_exception_inside_the_deployed_view_brings_the_training_view_back(recipe, error):
    model, engine = trained(short(recipe), steps=4, total=TOTAL)
    before = everything(model, engine)
    with pytest.raises(error), engine.deployed():
        raise error
    assert not engine.is_deployed and same(before, everything(model, engine))


class Breaks:
    """A user's method that cannot finish, once it has overwritten the weight."""

    init = staticmethod(lambda weight, clock: {})
    before_step = after_step = staticmethod(lambda weight, state, clock: None)

    def finish(self, weight, state, clock):
        weight.zero_()
        if weight.shape[0] == 8:
            raise OSError("no finish")


def test_an_error_while_deploying_brings_the_training_view_back():
    model, engine = trained(NxMConfig(recipe=Breaks()), steps=2, total=TOTAL)
    before = everything(model, engine)
    with pytest.raises(OSError, match="no finish"), engine.deployed():
        pass
    assert not engine.is_deployed and same(before, everything(model, engine))


def test_the_stamp_stands_in_the_config_only_while_the_weights_are_deployed():
    model = make_bert()
    optimizer = adamw(model)
    engine = attach(model, optimizer, "ste", total_steps=2)
    assert not hasattr(model.config, "nxm_config")
    with engine.deployed():
        assert model.config.nxm_config["recipe"] == "ste" and verify(model).ok
        json.dumps(model.config.nxm_config)
    assert not hasattr(model.config, "nxm_config")


@EACH_SPARSE
def test_a_finished_model_is_an_ordinary_sparse_model(recipe):
    model = Toy()
    ids, keys = [id(p) for p in model.parameters()], list(model.state_dict())
    types = [type(module) for module in model.modules()]
    optimizer = adamw(model)
    engine = attach(model, optimizer, short(recipe), total_steps=TOTAL)
    for _ in train(model, optimizer, 0, TOTAL):
        pass
    engine.finish()
    assert_sparse(model)
    assert engine.is_deployed and engine.finished
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    assert [id(p) for p in model.parameters()] == ids and list(model.state_dict()) == keys
    assert [type(module) for module in model.modules()] == types
    assert not any(m._forward_pre_hooks or m._forward_hooks or m._backward_hooks for m in model.modules())
    before = weights(model)
    engine.finish()
    with engine.deployed():
        assert same(before, weights(model))
    assert same(before, weights(model)) and engine.metrics() == {}
    for _ in train(model, optimizer, 0, 1):  # plain training goes on, and grows the zeros again
        pass
    assert any(parse("2:4").violations(weight) for weight in weights(model))


def test_finishing_inside_the_deployed_view_stays_finished():
    model, engine = trained("ste", steps=2)
    with engine.deployed():
        engine.finish()
    assert_sparse(model)
    assert engine.finished


def test_finishing_early_is_one_warning_with_phase_and_residual(caplog):
    model, engine = trained(short("admm", warmup=0.5), steps=4, total=TOTAL)
    with caplog.at_level(logging.WARNING, logger="nxm_hf"):
        engine.finish()
    (record,) = caplog.records
    assert "step 4 of 12" in record.getMessage() and "'warmup'" in record.getMessage()
    assert_sparse(model)


def test_finishing_in_time_is_no_warning(caplog):
    _, engine = trained("ste")
    with caplog.at_level(logging.WARNING, logger="nxm_hf"):
        engine.finish()
    assert not caplog.records


@EACH_SPARSE
@WINDOWS
def test_releasing_gives_back_what_the_optimizer_trained(recipe, window):
    model, engine = trained(short(recipe, **window), steps=4, total=TOTAL)
    expected = [weight.clone() for _, weight in engine.trained_weights()]
    with engine.deployed():
        engine.release()
        assert same(expected, weights(model))
    assert same(expected, weights(model)) and engine.finished


# Frozen masks and zeros


@pytest.mark.parametrize(
    "config", [NxMConfig("asp"), *(short(name, settle=0.9) for name in SPARSE)], ids=["asp-alone", *SPARSE]
)
def test_frozen_zeros_stay_true_zeros_for_two_hundred_steps_of_adamw(config):
    """Pitfalls 4 and 5: momentum and weight decay never revive a pruned weight, and no zero turns negative."""
    model = Toy()
    optimizer = adamw(model, betas=(0.95, 0.99))
    engine = attach(model, optimizer, config, total_steps=200)
    pruned = None
    for done in train(model, optimizer, 0, 200):
        if engine.phase == "settle" or config.recipe == "asp":
            pruned = pruned or [weight == 0 for weight in weights(model)]
            for weight, zeros in zip(weights(model), pruned, strict=True):
                assert torch.equal(bits(weight[zeros]), bits(torch.zeros(int(zeros.sum())))), f"revived at step {done}"
    assert sum(int(zeros.sum()) for zeros in pruned) == sum(w.numel() for w in weights(model)) // 2


@EACH_SPARSE
@WINDOWS
def test_no_zero_that_is_shipped_is_negative(recipe, window):
    """Pitfall 1: neither a pruned negative weight, nor a -0.0 that is kept or trained."""
    model = Toy()
    with torch.no_grad():
        for linear in model.linears:
            linear.weight.copy_(-linear.weight.abs())
            linear.weight[:2] = -0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine = attach(model, optimizer, short(recipe, **window), total_steps=TOTAL)
    for _ in train(model, optimizer, 0, TOTAL):
        with engine.deployed():
            assert_sparse(model)
    engine.finish()
    assert_sparse(model)
    assert all((weight < 0).any() for weight in weights(model))


@EACH_SPARSE
@pytest.mark.parametrize("pattern", ["1:4", "4:8", "3:4", "2:4-transposable", "unstructured:0.25", "block:4:0.5"])
def test_every_recipe_ends_in_every_pattern(recipe, pattern):
    model, engine = trained(taken(recipe, pattern), steps=4)
    engine.finish()
    assert_sparse(model, pattern)


def test_each_role_ends_in_its_own_pattern():
    model = make_bert()
    optimizer = adamw(model)
    engine = attach(model, optimizer, NxMConfig("ste", {"ffn": "2:4", "query": "1:4", "default": "dense"}), 1)
    engine.finish()
    density = {target.layer.role: target.pattern.density for target in engine.plan.targets}
    assert density == {"query": 0.25, "ffn_in": 0.5, "ffn_out": 0.5} and verify(model).ok


# Dense


@pytest.mark.parametrize("config", [NxMConfig("dense"), *(short(name, "dense") for name in RECIPES)], ids=str)
def test_the_recipe_dense_and_the_pattern_dense_are_plain_training(config):
    model, engine = trained(config)
    assert_equal_weights(model, plain(TOTAL))
    with engine.deployed():
        assert_equal_weights(model, plain(TOTAL))
    assert engine.metrics() == {} and engine.phase == "recipe"
    engine.finish()
    assert_equal_weights(model, plain(TOTAL))


# Gradient scalers


SCALED_OPTIMIZERS = {
    "fused": lambda model: adamw(model, fused=True),
    "foreach": lambda model: adamw(model, foreach=True),
    "adamw": lambda model: adamw(model, fused=False, foreach=False),
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
}
OVER_SCALED = pytest.mark.parametrize("optimizer", SCALED_OPTIMIZERS)


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


@OVER_SCALED
@EACH_SPARSE
@WINDOWS
@pytest.mark.parametrize("clip", [None, 1.0], ids=["scaled", "unscaled"])
def test_a_skipped_step_edits_nothing_and_does_not_count(recipe, window, optimizer, clip):
    """Pitfall 8: an overflow leaves weights, state and clock as they are, even when a fused kernel skips in silence."""
    model = Toy()
    stepper = SCALED_OPTIMIZERS[optimizer](model)
    engine = attach(model, stepper, short(recipe, **window), total_steps=TOTAL)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(TOTAL):
        if step in (0, 3, 4, 8):
            before = everything(model, engine)
            scaled_step(step, model, stepper, scaler, overflow=True, clip=clip)
            assert engine.step == step and same(before, everything(model, engine))
        scaled_step(step, model, stepper, scaler, clip=clip)
        assert engine.step == step + 1
    engine.finish()
    assert_sparse(model)


@OVER_SCALED
@EACH_SPARSE
@pytest.mark.parametrize("clip", [None, 1.0], ids=["scaled", "unscaled"])
def test_pulls_act_on_unscaled_gradients(recipe, optimizer, clip):
    """Pitfall 6: under a scale that is a power of two, training is bit for bit what it is without a scaler."""
    runs = []
    for scale in (1.0, 2.0**16):
        model = Toy()
        stepper = SCALED_OPTIMIZERS[optimizer](model)
        attach(model, stepper, short(recipe), total_steps=TOTAL)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale != 1)
        for step in range(TOTAL):
            scaled_step(step, model, stepper, scaler, clip=clip)
        runs.append(model)
    assert_equal_weights(*runs)


@OVER_SCALED
def test_skipped_steps_leave_the_run_that_never_had_them(optimizer):
    runs = []
    for skips in ((), (2, 5, 6)):
        model = Toy()
        stepper = SCALED_OPTIMIZERS[optimizer](model)
        attach(model, stepper, short("admm", **WINDOW), total_steps=TOTAL)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for step in range(TOTAL):
            if step in skips:
                scaled_step(step, model, stepper, scaler, overflow=True)
            scaled_step(step, model, stepper, scaler)
        runs.append(model)
    assert_equal_weights(*runs)


@OVER_SCALED
@pytest.mark.parametrize("skipped", [{4}, {4, 5}, {3, 6, 9}, {2, 3, 4, 9, 10}])
def test_an_event_due_at_a_skipped_step_happens_at_the_next_one_taken(optimizer, skipped):
    """Pitfall 8, by the Trainer's clock: `global_step` counts skipped steps too. The phases keep to it as well."""
    model = Toy()
    stepper = SCALED_OPTIMIZERS[optimizer](model)
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


# Gradients


@EACH_SPARSE
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


@EACH_SPARSE
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


# Optimizers


def _adafactor(model):
    return transformers.optimization.Adafactor(model.parameters(), lr=1e-2, scale_parameter=False, relative_step=False)


def _adafactor_relative(model):
    return transformers.optimization.Adafactor(model.parameters())


MORE_OPTIMIZERS = {
    "adamw-fused": lambda model: adamw(model, fused=True),
    "adamw-foreach": lambda model: adamw(model, foreach=True),
    "adamw-amsgrad": lambda model: adamw(model, amsgrad=True),
    "rmsprop": lambda model: torch.optim.RMSprop(model.parameters(), lr=1e-2, momentum=0.9),
    "nadam": lambda model: torch.optim.NAdam(model.parameters(), lr=1e-2),
    "adagrad": lambda model: torch.optim.Adagrad(model.parameters(), lr=1e-2),
    "adafactor-torch": lambda model: torch.optim.Adafactor(model.parameters(), lr=1e-2),
    "adafactor": _adafactor,
    "adafactor-relative": _adafactor_relative,
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, nesterov=True, momentum=0.9),
}


@pytest.mark.parametrize("module", ["bitsandbytes.optim.adamw", "torchao.optim.adam", "workflows.bellows"])
def test_an_adamw_of_a_library_that_quantizes_its_moments_is_refused_where_they_are_edited(module):
    kind = type("AdamW", (torch.optim.AdamW,), {"__module__": module})
    for recipe in ("rigl", "sr-ste"):
        model = Toy()
        if recipe == "sr-ste" or module.startswith("workflows"):
            attach(model, kind(model.parameters()), recipe, total_steps=3).finish()
            continue
        with pytest.raises(
            ValueError, match=r'AdamW keeps none .* TrainingArguments\(optim="adamw_torch"\), or a recipe'
        ):
            attach(model, kind(model.parameters()), recipe, total_steps=3)


@EACH_SPARSE
@pytest.mark.parametrize("optimizer", MORE_OPTIMIZERS)
def test_every_recipe_ends_sparse_under_every_optimizer(recipe, optimizer):
    model = Toy()
    before = weights(model)
    stepper, config = MORE_OPTIMIZERS[optimizer](model), short(recipe, **WINDOW)
    if config.method(NM(2, 4)).edits_moments and "adafactor" in optimizer:
        with pytest.raises(ValueError, match=r"Adafactor keeps none of those\. Use AdamW or SGD"):
            attach(model, stepper, config, total_steps=TOTAL)
        return
    engine = attach(model, stepper, config, total_steps=TOTAL)
    for _ in train(model, stepper, 0, TOTAL):
        pass
    engine.finish()
    assert_sparse(model)
    for now, then in zip(weights(model), before, strict=True):
        assert now.isfinite().all() and not torch.equal(now[now != 0], then[now != 0])


@pytest.mark.parametrize("words", [{"fused": True}, {"foreach": True}], ids=str)
@EACH_SPARSE
def test_fused_and_foreach_adamw_train_as_the_plain_one(recipe, words):
    one, other = (
        trained(short(recipe), optimizer=lambda model, chosen=chosen: adamw(model, **chosen))[0]
        for chosen in ({"foreach": False, "fused": False}, words)
    )
    for got, expected in zip(weights(one), weights(other), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.optim.LBFGS])
def test_an_optimizer_whose_step_is_not_one_update_is_an_error(kind):
    model = Toy()
    with pytest.raises(ValueError, match=f"{kind.__name__} does not update weights once per step.*use AdamW"):
        attach(model, kind(model.parameters()), "ste", total_steps=1)


def test_an_optimizer_wrapped_by_accelerate_is_as_good_as_a_bare_one():
    """Pitfall 6: accelerate steps the optimizer it wraps only once its gradients are accumulated."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = Toy()
    wrapped, stepper = accelerator.prepare(model, adamw(model))
    engine = attach(wrapped, stepper, "sr-ste", total_steps=3)
    for step in range(6):
        with accelerator.accumulate(wrapped):
            accelerator.backward(loss_at(step // 2, wrapped))
            stepper.step()
            stepper.zero_grad()
    assert engine.step == 3
    assert_equal_weights(model, trained("sr-ste", steps=3)[0])


@pytest.mark.parametrize("total", [0, -1, 2.5, None, "3", True])
def test_a_number_of_steps_that_is_none_is_an_error(total):
    model = Toy()
    with pytest.raises(ValueError, match=f"total_steps .*got {total!r}.*len"):
        attach(model, adamw(model), "ste", total_steps=total)


def test_an_epoch_has_the_steps_that_attach_is_told():
    model = Toy()
    optimizer = adamw(model)
    config = NxMConfig("admm", settings={"steps": "epoch", "rho": 0.01})
    engine = attach(model, optimizer, config, total_steps=12, steps_per_epoch=4)
    updates = [int(engine.tensors()["blocks.0.up/updates"]) - 1 for _ in train(model, optimizer, 0, 12)]
    assert updates == [step // 4 for step in range(1, 13)]


def test_an_epoch_of_unknown_length_is_an_error_that_says_where_to_give_it():
    with pytest.raises(ValueError, match="steps_per_epoch="):
        trained(NxMConfig("admm", settings={"steps": "epoch"}))


def test_a_step_with_a_closure_is_an_error():
    model = Toy()
    optimizer = adamw(model)
    attach(model, optimizer, "ste", total_steps=2)
    loss_at(0, model).backward()
    for step in (lambda: optimizer.step(lambda: 0.0), lambda: optimizer.step(closure=lambda: 0.0)):
        with pytest.raises(ValueError, match=r"call step\(\) without it"):
            step()
    optimizer.step(None)


def test_a_step_inside_the_deployed_view_is_an_error():
    model, engine = trained("ste", steps=2, total=4)
    before = weights(model)
    with engine.deployed():
        loss_at(2, model).backward()
        with pytest.raises(RuntimeError, match=r"engine\.deployed"):
            engine.optimizer.step()
        assert_sparse(model)
    assert same(before, weights(model)) and engine.step == 2


# What cannot be trained


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


@EACH_SPARSE
def test_what_is_refused_is_left_as_it_was(recipe):
    model = Toy()
    with torch.no_grad():
        model.blocks[1].down.weight[0, 0] = math.nan
    before, optimizer = weights(model), adamw(model)
    with pytest.raises(ValueError, match=r"blocks\.1\.down"):
        attach(model, optimizer, short(recipe), total_steps=1)
    assert same(before, weights(model)) and not optimizer._optimizer_step_pre_hooks


@EACH_SPARSE
@WINDOWS
def test_nan_in_a_weight_is_an_error_that_names_the_layer_before_the_first_step(recipe, window):
    model = Toy()
    with torch.no_grad():
        model.blocks[0].down.weight[3, 5] = math.nan
    with pytest.raises(ValueError, match=r"1 layers .* hold NaN.*blocks\.0\.down\."):
        attach(model, adamw(model), short(recipe, **window), total_steps=TOTAL)


@EACH_SPARSE
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


@EACH_SPARSE
def test_infinities_are_the_largest_and_those_that_are_pruned_are_zeros(recipe):
    model = Toy()
    with torch.no_grad():
        model.blocks[0].up.weight[0] = torch.tensor([1.0, math.inf, 2.0, -3.0, math.inf, -math.inf, math.inf, 1.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = attach(model, optimizer, short(recipe), total_steps=1)
    with engine.deployed():
        expected = [0.0, math.inf, 0.0, -3.0, math.inf, -math.inf, 0.0, 0.0]
        assert model.blocks[0].up.weight[0].tolist() == expected
        assert_sparse(model)


# Shared, tied and transposed weights


def test_a_shared_layer_is_handled_once_a_step():
    words = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    model = AlbertForSequenceClassification(AlbertConfig(**words, embedding_size=8, max_position_embeddings=16))
    calls, optimizer = [], adamw(model)
    engine = attach(model, optimizer, NxMConfig(recipe=Spy(calls)), total_steps=2)
    assert len(engine.plan.targets) == 6 and len(calls) == 6
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=torch.arange(8).view(2, 4), labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
    engine.finish()
    assert len(calls) == 6 + 2 * 2 * 6 and verify(model).ok


def test_a_tied_weight_stays_dense():
    """Pitfall 31: a matrix of the blocks that is also the head's is not pruned through the tie."""
    model = Toy()
    tied = nn.Linear(8, 16)
    tied.weight = model.blocks[1].up.weight
    model.decoder = tied
    before = tied.weight.detach().clone()
    engine = attach(model, adamw(model), "asp", total_steps=1)
    assert [target.name for target in engine.plan.targets] == ["blocks.0.up", "blocks.0.down", "blocks.1.down"]
    assert torch.equal(tied.weight, before)


@EACH_SPARSE
@WINDOWS
def test_conv1d_is_sparse_along_its_inputs_which_stand_first(recipe, window):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=16, pad_token_id=0)
    model = GPT2ForSequenceClassification(config)
    optimizer = adamw(model)
    engine = attach(model, optimizer, short(recipe, **window), total_steps=TOTAL)
    for _ in range(TOTAL):
        optimizer.zero_grad()
        model(input_ids=torch.arange(1, 9).view(2, 4), labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
    engine.finish()
    weight = model.transformer.h[0].mlp.c_fc.weight  # [in, out]
    assert weight.shape == (16, 64) and len(engine.plan.targets) == 8
    kept = weight.view(4, 4, 64).count_nonzero(1)
    assert bool((kept == 2).all()) or (
        recipe in ("set", "rigl") and bool((kept <= 2).all())
    )  # what has just grown is 0
    assert bool((weight.view(16, 16, 4).count_nonzero(-1) > 2).any()), "and not along its outputs"
    assert verify(model).ok


@EACH_SPARSE
@WINDOWS
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_conv1d_trains_as_the_linear_it_is(recipe, window, optimizer):
    """All edits of weight and gradient reach the stored [in, out] tensors."""
    model, turned = Toy(), Toy()
    for block in turned.blocks:
        block.up, block.down = _conv1d(block.up), _conv1d(block.down)
    settings = {"grad_scale": 0.5} if "grad_scale" in recipes.settings(recipe) else {}
    for network in (model, turned):
        stepper = SCALED_OPTIMIZERS[optimizer](network)
        engine = attach(network, stepper, short(recipe, settings=settings, **window), total_steps=TOTAL)
        for _ in train(network, stepper, 0, TOTAL):
            pass
        engine.finish()
    for one, other in zip(weights(model), weights(turned), strict=True):
        torch.testing.assert_close(one, other.t(), rtol=1e-3, atol=1e-5)
        assert torch.equal(one != 0, other.t() != 0)


def _conv1d(linear):
    turned = Conv1D(linear.out_features, linear.in_features)
    turned.load_state_dict({"weight": linear.weight.detach().t().contiguous(), "bias": linear.bias.detach()})
    return turned


# Resuming


def _save(model, optimizer, engine):
    """What a checkpoint holds, through bytes."""
    return save(model.state_dict()), copy.deepcopy(optimizer.state_dict()), save(engine.state_dict())


def _load(saved, config, make_optimizer=adamw, total=TOTAL):
    model = Toy(seed=1)
    model.load_state_dict(load(saved[0]))
    optimizer = make_optimizer(model)
    engine = attach(model, optimizer, config, total_steps=total)
    optimizer.load_state_dict(saved[1])
    engine.load_state_dict(load(saved[2]))
    return model, optimizer, engine


@EACH_SPARSE
@WINDOWS
@pytest.mark.parametrize(("view", "optimizer"), [("training", "adamw"), ("deployed", "sgd")])
def test_a_run_resumed_at_any_step_is_the_unbroken_run(recipe, window, view, optimizer):
    """Pitfall 3; the state may be taken while the deployed view is shown."""
    config, make_optimizer = short(recipe, **window), SCALED_OPTIMIZERS[optimizer]
    model = Toy()
    optimizer = make_optimizer(model)
    engine = attach(model, optimizer, config, total_steps=TOTAL)
    cuts = []
    for _ in train(model, optimizer, 0, TOTAL):
        if view == "training":
            cuts.append(_save(model, optimizer, engine))
        else:
            with engine.deployed():
                cuts.append(_save(model, optimizer, engine))
    expected = everything(model, engine)
    for done, saved in enumerate(cuts, start=1):
        again, stepper, resumed = _load(saved, config, make_optimizer)
        assert resumed.step == done
        for _ in train(again, stepper, done, TOTAL):
            pass
        assert same(everything(again, resumed), expected), f"resumed at {done}"


@EACH_SPARSE
@WINDOWS
def test_the_state_is_tensors_with_a_header_of_json(recipe, window):
    """Pitfall 32: no pickle is needed."""
    _, engine = trained(short(recipe, **window), steps=5, total=TOTAL)
    state = engine.state_dict()
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    header = json.loads(bytes(state["header"].tolist()))
    assert header["step"] == 5 and header["config"]["recipe"] == recipe and header["layers"] == engine.plan.layers
    assert same(load(save(state)), state)


def test_the_state_is_a_copy():
    model, engine = trained("ste", steps=2, total=4)
    state = engine.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    for _ in train(model, engine.optimizer, 2, 4):
        pass
    assert same(before, state)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (NxMConfig("sr-ste"), "recipe 'ste'.*'sr-ste'.*recipe='ste'"),
        (NxMConfig("ste", "1:4"), "pattern '2:4'.*'1:4'.*pattern='2:4'"),
        (NxMConfig("ste", exclude=["blocks.0.up"]), r"other layers.*blocks\.0\.up"),
    ],
    ids=["recipe", "pattern", "layers"],
)
def test_the_state_of_another_run_is_an_error_and_changes_nothing(config, says):
    state = trained("ste", steps=2, total=4)[1].state_dict()
    model, engine = trained(config, steps=1, total=4)
    before = everything(model, engine)
    with pytest.raises(ValueError, match=says):
        engine.load_state_dict(state)
    assert engine.step == 1 and same(before, everything(model, engine))


def test_what_is_no_state_is_an_error():
    _, engine = trained("ste", steps=1)
    with pytest.raises(ValueError, match=r"no header.*engine\.state_dict"):
        engine.load_state_dict({"weight": torch.zeros(1)})


def test_another_number_of_steps_is_one_warning(caplog):
    state = trained("ste", steps=2, total=4)[1].state_dict()
    _, engine = trained("ste", steps=1, total=8)
    with caplog.at_level(logging.DEBUG, logger="nxm_hf"):
        engine.load_state_dict(state)
    (record,) = caplog.records
    assert record.name == "nxm_hf" and record.levelno == logging.WARNING
    assert "towards 8 steps" in record.getMessage() and "made for 4" in record.getMessage()


def test_the_same_run_resumes_without_a_word(caplog):
    state = trained(short("admm"), steps=2, total=4)[1].state_dict()
    _, engine = trained(short("admm"), steps=1, total=4)
    with caplog.at_level(logging.DEBUG, logger="nxm_hf"):
        engine.load_state_dict(state)
    assert not caplog.records


@EACH_SPARSE
def test_a_run_resumed_with_more_steps_never_goes_back_a_phase(recipe):
    config = short(recipe, warmup=0.25, settle=0.25)
    state = trained(config, steps=10, total=TOTAL)[1].state_dict()
    model = Toy()
    optimizer = adamw(model)
    engine = attach(model, optimizer, config, total_steps=100)
    engine.load_state_dict(state)
    assert engine.phase == "settle"
    for _ in train(model, optimizer, 10, 14):
        assert engine.phase == "settle"
    assert_sparse(model)


# A user's own method


class Duck:
    """Four verbs and no base class: each step shrinks what is not among the two largest of four."""

    def init(self, weight, clock):
        return {"count": torch.zeros((), dtype=torch.int64)}

    def before_step(self, weight, state, clock):
        if weight.grad is not None:
            weight.grad.add_(weight.masked_fill(self._mask(weight), 0.0), alpha=clock.progress)

    def after_step(self, weight, state, clock):
        state["count"] += 1

    def finish(self, weight, state, clock):
        weight.masked_fill_(~self._mask(weight), 0.0).add_(0.0)

    def _mask(self, weight):
        return NM(2, 4).mask(weight.detach().abs())

    def __repr__(self):
        return "Duck()"


@WINDOWS
def test_a_users_own_method_trains_deploys_and_finishes(window):
    config = NxMConfig(recipe=Duck(), **window)
    assert config.to_dict()["recipe"] == "custom"
    model, engine = trained(config)
    with engine.deployed():
        assert_sparse(model)
    engine.finish()
    assert_sparse(model)
    assert not same(weights(model), weights(plain(TOTAL)))


@WINDOWS
def test_a_users_own_method_resumes(window):
    config = NxMConfig(recipe=Duck(), **window)
    unbroken, _ = trained(config)
    model, engine = trained(config, steps=5, total=TOTAL)
    saved = _save(model, engine.optimizer, engine)
    again, optimizer, _ = _load(saved, config)
    for _ in train(again, optimizer, 5, TOTAL):
        pass
    assert_equal_weights(again, unbroken)


def test_a_users_method_without_a_repr_resumes_without_a_word(caplog):
    class Quiet(Duck):
        __repr__ = object.__repr__

    _, engine = trained(NxMConfig(recipe=Quiet()), steps=2, total=4)
    _, other = trained(NxMConfig(recipe=Quiet()), steps=1, total=4)
    assert " at 0x" not in json.dumps(engine.config.to_dict())
    with caplog.at_level(logging.DEBUG, logger="nxm_hf"):
        other.load_state_dict(engine.state_dict())
    assert not caplog.records


def test_a_method_object_of_ours_is_the_recipe_it_was_made_for():
    one, _ = trained(NxMConfig(recipe=Masked(Constant(NM(2, 4)), refresh=Every(3)), settle=0.25))
    other, _ = trained(NxMConfig("ste", settings={"refresh": 3}, settle=0.25))
    assert_equal_weights(one, other)


def test_what_lacks_a_verb_is_no_method():
    class Lame:
        init = before_step = after_step = lambda *arguments: None

    with pytest.raises((ValueError, TypeError)):
        NxMConfig(recipe=Lame())


# Neighbours


@EACH_SPARSE
def test_two_engines_in_one_process_do_not_meet(recipe):
    """Pitfall 18: no state is kept outside the engine."""
    alone, _ = trained(short(recipe))
    model, other = Toy(), Toy(seed=3)
    optimizers = adamw(model), adamw(other)
    first = attach(model, optimizers[0], short(recipe), total_steps=TOTAL)
    second = attach(other, optimizers[1], short("sr-ste", "1:4"), total_steps=TOTAL)
    for _ in zip(train(model, optimizers[0], 0, TOTAL), train(other, optimizers[1], 0, TOTAL), strict=True):
        with second.deployed():
            pass
    second.finish()
    assert_equal_weights(model, alone)
    first.finish()
    assert_sparse(model)
    assert_sparse(other, "1:4")


@EACH
def test_the_global_random_numbers_are_untouched(recipe):
    """House 14: an attached run draws nothing from the generator that dropout and shuffling use."""
    model = Toy()
    optimizer = adamw(model)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    engine = attach(model, optimizer, short(recipe, **WINDOW), total_steps=TOTAL)
    for _ in train(model, optimizer, 0, TOTAL):
        with engine.deployed():
            engine.metrics()
    engine.load_state_dict(engine.state_dict())
    engine.finish()
    assert torch.equal(torch.get_rng_state(), before)


@EACH_SPARSE
def test_the_head_and_the_biases_are_only_trained(recipe):
    model, engine = trained(short(recipe))
    engine.finish()
    assert all(name.endswith(("up", "down")) for name in engine.plan.layers)
    assert bool((model.head.weight != 0).all()) and bool((model.blocks[0].up.bias != 0).all())


@EACH_SPARSE
def test_a_config_given_to_an_engine_is_not_written_on(recipe):
    config, model = short(recipe), Toy()
    engine = Engine(model, adamw(model), config, total_steps=1)
    words = config.to_dict()
    with engine.deployed():
        assert engine.config.density == 0.5
    assert config.to_dict() == words and config.density is None


LADDERS = ("structure-decay", "gradual", "acdc")  # whose masks keep now more and now less


@EACH_SPARSE
@WINDOWS
def test_metrics_say_where_the_run_is(recipe, window):
    model = Toy()
    optimizer = adamw(model)
    engine = attach(model, optimizer, short(recipe, **window), total_steps=TOTAL)
    for _ in train(model, optimizer, 0, TOTAL):
        metrics = engine.metrics()
        assert metrics["nxm/density"] == 0.5
        if recipe not in LADDERS:
            assert metrics["nxm/flip_rate"] == pytest.approx(2 * (1 - metrics["nxm/mask_similarity"]) * 0.5)
        assert 0 <= metrics["nxm/flip_rate"] <= 1 and 0 <= metrics["nxm/residual"] < 1
        assert metrics["nxm/phase"] == ("warmup", "recipe", "settle").index(engine.phase)
        if recipe not in (*LADDERS, "reset"):
            sparse = recipe in ("asp", "set", "rigl") and engine.phase == "recipe"
            assert (metrics["nxm/residual"] == 0) == (sparse or engine.phase == "settle")
        with engine.deployed():
            assert engine.metrics() == metrics


@EACH_SPARSE
def test_logging_a_nan_is_no_error(recipe):
    """It is the next mask that refuses it, and names the layer; a log would not."""
    _, engine = trained(short(recipe), steps=2, total=TOTAL)
    largest = engine.tensors()["blocks.0.up/weight"].abs().argmax()
    for slot in ("weight", "dense"):
        if (tensor := engine.tensors().get(f"blocks.0.up/{slot}")) is not None:
            tensor.view(-1)[largest] = math.nan
    assert math.isnan(engine.metrics()["nxm/residual"])
    with pytest.raises(ValueError, match=r"blocks\.0\.up"):
        engine.finish()


def test_a_second_engine_on_one_optimizer_is_an_error_until_the_first_is_released():
    model = Toy()
    optimizer = adamw(model)
    engine = attach(model, optimizer, "ste", total_steps=TOTAL)
    with pytest.raises(ValueError, match="has an engine already; call its release"):
        attach(model, optimizer, "asp", total_steps=TOTAL)
    engine.release()
    attach(model, optimizer, "asp", total_steps=TOTAL)


def test_a_finished_training_has_no_state_to_give_or_take():
    _, engine = trained("ste", steps=2)
    state = engine.state_dict()
    engine.finish()
    for late in (engine.state_dict, lambda: engine.load_state_dict(state)):
        with pytest.raises(RuntimeError, match="finished and has no state any more"):
            late()


def test_chance_goes_on_with_the_seed_of_the_run_that_is_resumed():
    masks = []
    for seed, other in ((1, None), (2, 1), (2, None)):
        model = Toy()
        optimizer = adamw(model)
        engine = attach(model, optimizer, short("set"), total_steps=TOTAL, seed=seed)
        if other is not None:
            begun = Toy()
            engine.load_state_dict(
                attach(begun, adamw(begun), short("set"), total_steps=TOTAL, seed=other).state_dict()
            )
        for _ in train(model, optimizer, 0, 4):
            pass
        masks.append([engine.tensors()[f"{target.name}/mask"].clone() for target in engine.plan.targets])
    assert same(masks[0], masks[1]) and not same(masks[0], masks[2])
