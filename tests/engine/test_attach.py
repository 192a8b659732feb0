"""`attach`: an engine in a loop of the user's own."""

import pytest
import torch
from accelerate import Accelerator

from nxm_hf import NxMConfig, attach
from tests.support.grids import EACH_RECIPE, EACH_SPARSE_RECIPE, WINDOW
from tests.support.models import assert_equal_weights
from tests.support.toy_training import (
    TOTAL,
    Toy,
    adamw,
    assert_sparse,
    loss_at,
    same,
    short,
    train,
    trained,
    weights,
)


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
    updates = [int(engine.tensors()["blocks.0.up/updates"]) for _ in train(model, optimizer, 0, 12)]
    assert updates == [step // 4 for step in range(1, 13)]


def test_an_epoch_of_unknown_length_is_an_error_that_says_where_to_give_it():
    with pytest.raises(ValueError, match="steps_per_epoch="):
        trained(NxMConfig("admm", settings={"steps": "epoch"}))


@EACH_SPARSE_RECIPE
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


def test_a_second_engine_on_one_optimizer_is_an_error_until_the_first_is_released():
    model = Toy()
    optimizer = adamw(model)
    engine = attach(model, optimizer, "ste", total_steps=TOTAL)
    with pytest.raises(ValueError, match="has an engine already; call its release"):
        attach(model, optimizer, "asp", total_steps=TOTAL)
    engine.release()
    attach(model, optimizer, "asp", total_steps=TOTAL)


@EACH_RECIPE
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


@EACH_SPARSE_RECIPE
def test_a_config_given_to_an_engine_is_not_written_on(recipe):
    config, model = short(recipe), Toy()
    before = config.to_dict()
    engine = attach(model, adamw(model), config, total_steps=1)
    with engine.deployed():
        assert config.to_dict() == before
    engine.finish()
    assert config.to_dict() == before


@pytest.mark.parametrize("end", ["finish", "release"])
def test_a_second_engine_with_another_optimizer_on_the_same_layers_is_refused(end):
    model = Toy()
    first = attach(model, adamw(model), NxMConfig("ste", include=["up"]), total_steps=1)
    before = weights(model)
    with pytest.raises(
        ValueError, match=r"^Another engine trains 2 of these layers .*: blocks\.0\.up, blocks\.1\.up\. Call"
    ):
        attach(model, adamw(model), "ste", total_steps=1)
    assert same(before, weights(model))
    second = attach(model, adamw(model), NxMConfig("ste", include=["down"]), total_steps=1)
    getattr(first, end)()
    second.release()
    attach(model, adamw(model), "ste", total_steps=1)


def test_an_engine_that_nobody_can_reach_stands_in_no_ones_way():
    model = Toy()
    for _ in range(2):  # as a cell of a notebook that is run again
        optimizer = adamw(model)
        engine = attach(model, optimizer, "ste", total_steps=1)
        del engine, optimizer


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ({"warmup": 0.25}, r"attach\(model, optimizer, .*warmup=0\.25.*, total_steps=4\)"),
        ({"total": 4}, "model, optimizer, sparsity, total_steps, steps_per_epoch and seed"),
    ],
)
def test_an_argument_that_attach_does_not_have_is_refused_with_what_to_write(names, says):
    model = Toy()
    optimizer = adamw(model)
    with pytest.raises(TypeError, match=says):
        attach(model, optimizer, "ste", total_steps=4, **names)
    attach(model, optimizer, "ste", total_steps=4).release()  # nothing is attached yet
