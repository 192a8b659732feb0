"""Methods that users write: four verbs and no base class."""

import json
import logging

import pytest
from torch.distributed.fsdp import fully_shard

from nxm_hf import NxMConfig, attach
from nxm_hf.layers.weight_part import WeightPart
from nxm_hf.methods import Masked
from nxm_hf.methods.schedules import Constant, Every
from nxm_hf.patterns import NM
from tests.support.custom_methods import Shrinking
from tests.support.grids import WINDOWS
from tests.support.group_of_one import group_of_one
from tests.support.models import assert_equal_weights
from tests.support.toy_training import (
    IMPLEMENTATIONS,
    TOTAL,
    Toy,
    adamw,
    assert_sparse,
    load_run,
    same,
    save_run,
    train,
    trained,
    trained_plainly,
    weights,
)


@WINDOWS
def test_a_users_own_method_trains_deploys_and_finishes(window):
    config = NxMConfig(recipe=Shrinking(), **window)
    assert config.to_dict()["recipe"] == "custom"
    model, engine = trained(config)
    with engine.deployed():
        assert_sparse(model)
    engine.finish()
    assert_sparse(model)
    assert not same(weights(model), weights(trained_plainly(TOTAL)))


@WINDOWS
def test_a_users_own_method_resumes(window):
    config = NxMConfig(recipe=Shrinking(), **window)
    unbroken, _ = trained(config)
    model, engine = trained(config, steps=5, total=TOTAL)
    saved = save_run(model, engine.optimizer, engine)
    again, optimizer, _ = load_run(saved, config)
    for _ in train(again, optimizer, 5, TOTAL):
        pass
    assert_equal_weights(again, unbroken)


def test_a_users_method_without_a_repr_resumes_without_a_word(caplog):
    class Quiet(Shrinking):
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


@pytest.mark.parametrize("optimizer", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
def test_after_a_step_methods_find_the_models_own_weights_in_the_optimizer(optimizer):
    """Some methods have it train dense weights in their place, but only during its step."""
    made, held = [], []

    class Watching(Masked):
        def after_step(self, weight, state, clock):
            (stepper,) = made
            held.append({id(each) for group in stepper.param_groups for each in group["params"]})
            held.append({id(each) for each in stepper.state})
            super().after_step(weight, state, clock)

    def make(model):
        made.append(optimizer(model))
        return made[0]

    model, _ = trained(NxMConfig(recipe=Watching(Constant(NM(2, 4)), refresh=Every(3))), optimizer=make)
    assert held == [{id(each) for each in model.parameters()}] * 2 * 4 * TOTAL


@pytest.mark.parametrize("sharded", [False, True])
def test_the_clock_of_each_verb_gives_access_to_the_whole_of_a_sharded_weight(sharded):
    seen = []

    class Watching(Masked):
        def init(self, weight, clock):
            seen.append(("init", clock.whole))
            return super().init(weight, clock)

        def before_step(self, weight, state, clock):
            seen.append(("before_step", clock.whole))
            super().before_step(weight, state, clock)

        def after_step(self, weight, state, clock):
            seen.append(("after_step", clock.whole))
            super().after_step(weight, state, clock)

        def finish(self, weight, state, clock):
            seen.append(("finish", clock.whole))
            super().finish(weight, state, clock)

    with group_of_one() as shards:
        model = Toy()
        if sharded:
            fully_shard(model, mesh=shards.mesh)
        optimizer = adamw(model)
        engine = attach(model, optimizer, NxMConfig(recipe=Watching(Constant(NM(2, 4)))), total_steps=2)
        for _ in train(model, optimizer, 0, 2):
            pass
        engine.finish()
    assert {verb for verb, _ in seen} == {"init", "before_step", "after_step", "finish"}
    assert {isinstance(whole, WeightPart) for _, whole in seen} == {sharded}


def test_a_method_that_may_look_at_whole_weights_is_refused_if_they_are_sharded():
    with group_of_one() as shards:
        model = Toy()
        fully_shard(model, mesh=shards.mesh)
        with pytest.raises(ValueError, match="may look at whole weights, and FSDP2 shards them"):
            attach(model, adamw(model), NxMConfig(recipe=Shrinking()), total_steps=2)


def test_what_lacks_a_verb_is_no_method():
    class Lame:
        init = before_step = after_step = lambda *arguments: None

    with pytest.raises((ValueError, TypeError)):
        NxMConfig(recipe=Lame())
