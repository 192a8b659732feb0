"""Phases of a training: dense, by the recipe, and with the mask frozen."""

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from torch.utils.data import DataLoader

from nxm_hf import NxMConfig, attach, recipes
from nxm_hf.engine.engine import Engine
from nxm_hf.layers.plan import Plan
from nxm_hf.methods.schedules import Evenly
from nxm_hf.patterns import NM
from tests.support.custom_methods import Recorder
from tests.support.grids import EACH_SPARSE_RECIPE, FEW, SPARSE, WINDOW
from tests.support.models import assert_equal_weights, make_bert, make_rows
from tests.support.toy_training import (
    TOTAL,
    Toy,
    adamw,
    assert_sparse,
    bits,
    has_negative_zeros,
    same,
    short,
    train,
    trained,
    weights,
)


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
    config = NxMConfig(recipe=Recorder(calls), include=["blocks.0.up"], warmup=warmup, settle=settle)
    engine = attach(model, optimizer, config, total_steps=total)
    phases = [engine.phase]
    for _ in train(model, optimizer, 0, total):
        phases.append(engine.phase)
    assert phases == [("warmup" if t < a else "settle" if e <= t and e < total else "recipe") for t in range(total + 1)]
    steps = [("before", t, e - a) if verb == 0 else ("after", t + 1, e - a) for t in range(e - a) for verb in (0, 1)]
    assert calls == [("init", 0, e - a), *steps]


@EACH_SPARSE_RECIPE
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


@EACH_SPARSE_RECIPE
@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_once_settled_the_mask_is_the_one_that_was_deployed_then_and_stays(recipe, warmup):
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


@EACH_SPARSE_RECIPE
@pytest.mark.parametrize("total", [1, 2, 3])
def test_phases_shorter_than_a_step_still_end_sparse(recipe, total):
    for window in ({"warmup": 0.4, "settle": 0.5}, {"settle": 0.9}, {"warmup": 0.9, "settle": 0.05}):
        model, engine = trained(short(recipe, **window), steps=total)
        engine.finish()
        assert_sparse(model)


@pytest.mark.parametrize(
    "config", [NxMConfig("asp"), *(short(name, settle=0.9) for name in SPARSE)], ids=["asp-alone", *SPARSE]
)
def test_frozen_zeros_stay_true_zeros_for_many_steps_of_adamw(config):
    """Pitfalls 4 and 5: momentum and weight decay never revive a pruned weight, and no zero turns negative.

    For 200 steps with the recipes of FEW, and for 80 with others.
    """
    steps = 200 if config.recipe in FEW else 80  # no mask changes at the last step before the mask is frozen
    model = Toy()
    optimizer = adamw(model, betas=(0.95, 0.99))
    engine = attach(model, optimizer, config, total_steps=steps)
    pruned = None
    for done in train(model, optimizer, 0, steps):
        if engine.phase == "settle" or config.recipe == "asp":
            pruned = pruned or [weight == 0 for weight in weights(model)]
            for weight, zeros in zip(weights(model), pruned, strict=True):
                assert torch.equal(bits(weight[zeros]), bits(torch.zeros(int(zeros.sum())))), f"revived at step {done}"
    assert sum(int(zeros.sum()) for zeros in pruned) == sum(w.numel() for w in weights(model)) // 2


@pytest.mark.parametrize(("warmup", "settle", "begin"), [(0.0, 0.0, 0), (0.5, 0.0, 2), (0.5, 0.25, 2)])
def test_weights_are_pruned_with_rows_once_and_when_the_phase_begins_that_goes_on_from_them(
    warmup, settle, begin, caplog
):
    """Before the first forward pass if it begins the training; the model is not said to be sparse for that."""
    model, config = make_bert(), NxMConfig("asp", settings={"scores": "wanda"}, warmup=warmup, settle=settle)
    optimizer, rows = adamw(model), make_rows(8)
    with caplog.at_level("INFO", logger="nxm_hf"):
        engine = Engine(Plan.of(model, config), optimizer, config, 4, train_dataloader=DataLoader(rows, 4))
        pruned = ["wanda pruned" in caplog.text]
        assert not hasattr(model.config, "nxm_config")
        for step in range(4):
            model(**{name: value[None] for name, value in rows[step].items()}).loss.backward()
            before = [NM(2, 4).violations(target.matrix()) for target in engine.plan.targets]
            assert all(before) == (step < begin) and any(before) == (step < begin)
            optimizer.step()
            pruned.append("wanda pruned" in caplog.text)
            assert not hasattr(model.config, "nxm_config")
    assert pruned == [step >= begin for step in range(5)]
    assert caplog.text.count("wanda pruned 12 layers") == 1
    engine.finish()
    assert model.config.nxm_config["recipe"] == "asp"


def test_a_preview_is_shown_only_where_it_is_asked_for():
    """All processes have to ask together, so code that only looks at the weights must not begin one."""
    model, config = make_bert(), NxMConfig("asp", settings={"scores": "wanda", "preview": True}, warmup=0.75)
    optimizer, rows = adamw(model), make_rows(8)
    engine = Engine(Plan.of(model, config), optimizer, config, 4, train_dataloader=DataLoader(rows, 4))

    def shown(*asked, **named):
        with engine.deployed(*asked, **named):
            return [target.matrix().detach().clone() for target in engine.plan.targets]

    plain = shown()
    assert same(plain, shown(preview=False)) and not same(plain, shown(preview=True))
    engine.deploy()
    assert same(plain, [target.matrix() for target in engine.plan.targets])
    engine.undeploy()


def test_an_engine_that_is_made_by_hand_has_the_seed_of_attach():
    config, headers = NxMConfig("set"), []
    for make in (Engine, lambda plan, optimizer, config, total: attach(plan.model, optimizer, config, total)):
        model = Toy()
        headers.append(make(Plan.of(model, config), adamw(model), config, 4).header())
    assert headers[0] == headers[1] and headers[0]["seed"] == 0
