"""The state of an engine: a run resumed at any step is the unbroken run."""

import gc
import json
import logging
import weakref

import pytest
import torch
from safetensors.torch import load, save

from nxm_hf import NxMConfig, attach
from tests.support.grids import BOTH_WINDOWS, EACH_SPARSE_RECIPE, FEW, SPARSE, WINDOWS, pairs
from tests.support.toy_training import (
    IMPLEMENTATIONS,
    TOTAL,
    Toy,
    adamw,
    all_tensors,
    assert_sparse,
    load_run,
    same,
    save_run,
    short,
    train,
    trained,
)


@pairs(recipe=SPARSE, window=BOTH_WINDOWS, view=["training", "deployed"], optimizer=["adamw", "sgd"])
def test_a_run_resumed_at_any_step_is_the_unbroken_run(recipe, window, view, optimizer):
    """Pitfall 3; the state may be short_or_skip while the deployed view is shown."""
    config, make_optimizer = short(recipe, **window), IMPLEMENTATIONS[optimizer]
    model = Toy()
    optimizer = make_optimizer(model)
    engine = attach(model, optimizer, config, total_steps=TOTAL)
    cuts = []
    for _ in train(model, optimizer, 0, TOTAL):
        if view == "training":
            cuts.append(save_run(model, optimizer, engine))
        else:
            with engine.deployed():
                cuts.append(save_run(model, optimizer, engine))
    expected = all_tensors(model, engine)
    for done in range(1, TOTAL + 1) if recipe in FEW else (1, 3, 4, 9, 11):
        saved = cuts[done - 1]
        again, stepper, resumed = load_run(saved, config, make_optimizer)
        assert resumed.step == done
        for _ in train(again, stepper, done, TOTAL):
            pass
        assert same(all_tensors(again, resumed), expected), f"resumed at {done}"


@EACH_SPARSE_RECIPE
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


@pytest.mark.parametrize("recipe", ["ste", "admm", "mask-decay", "rigl"])
def test_a_state_that_was_loaded_is_not_changed_by_the_training_that_goes_on(recipe):
    state = trained(short(recipe), steps=2, total=6)[1].state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    model, engine = trained(short(recipe), steps=1, total=6)
    engine.load_state_dict(state)
    for _ in train(model, engine.optimizer, 2, 6):
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
    before = all_tensors(model, engine)
    with pytest.raises(ValueError, match=says):
        engine.load_state_dict(state)
    assert engine.step == 1 and same(before, all_tensors(model, engine))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop("blocks.0.up/weight"), r"no weight of blocks\.0\.up"),
        (
            lambda state: state.update({"blocks.0.up/weight": torch.ones(1, 8)}),
            r"up/weight is \(1, 8\).*needs \(16, 8\)",
        ),
        (lambda state: state.update({"blocks.0.up/weight": torch.ones(())}), r"up/weight is \(\).*needs \(16, 8\)"),
        (lambda state: state.update({"blocks.0.up/mask": torch.ones(8, 16) > 0}), r"up/mask is \(8, 16\)"),
        (
            lambda state: state.update({"blocks.0.up/bias": torch.ones(1)}),
            r"up/bias is \(1,\).*(needs \(16,\)|has none)",
        ),
        (
            lambda state: state.update({"blocks.0.up/bias": torch.ones(())}),
            r"up/bias is \(\).*(needs \(16,\)|has none)",
        ),
    ],
    ids=["no weight", "one row", "a number", "a mask on its side", "a bias of one", "a number as bias"],
)
def test_a_tensor_of_another_shape_is_an_error_and_changes_nothing(change, says):
    """PyTorch would copy one row, or one number, into all."""
    state = trained("ste", steps=2, total=4)[1].state_dict()
    change(state)
    model, engine = trained("ste", steps=1, total=4)
    before = all_tensors(model, engine)
    with pytest.raises(ValueError, match=says):
        engine.load_state_dict(state)
    assert engine.step == 1 and same(before, all_tensors(model, engine))


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


@EACH_SPARSE_RECIPE
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


def test_a_state_says_which_steps_were_done_when_the_method_last_acted_and_of_which_run():
    """A Trainer's clock counts skipped steps, too, so the two numbers may differ."""
    _, engine = trained(short("admm"), steps=3, total=TOTAL)
    assert engine.header() == {
        "step": 3,
        "last": 3,
        "total_steps": TOTAL,
        "seed": 0,
        "config": short("admm").to_dict(),
        "layers": {target.name: "2:4" for target in engine.plan.targets},
    }
    engine.step = 5
    state = engine.state_dict()
    other = Toy()
    again = attach(other, adamw(other), short("admm"), total_steps=TOTAL, seed=4)
    again.load_state_dict(state)
    assert again.header() == engine.header() == {**engine.header(), "step": 5, "last": 3, "seed": 0}
    assert again.step == 5 and engine.tensors(keep=True).keys() == again.tensors().keys()
    assert all(again.tensors()[name].equal(tensor) for name, tensor in engine.tensors().items())


def test_a_state_that_is_loaded_while_the_deployed_view_is_shown_ends_that_view():
    model, engine = trained(short("ste"), steps=3, total=TOTAL)
    state, before = engine.state_dict(), all_tensors(model, engine)
    engine.deploy()
    assert engine.is_deployed and not same(before, all_tensors(model, engine))
    engine.load_state_dict(state)
    assert not engine.is_deployed and same(before, all_tensors(model, engine))


@pytest.mark.parametrize("recipe", ["asp", "ste", "admm"])
@pytest.mark.parametrize("end", ["finish", "detach"])
def test_a_finished_training_frees_the_memory_of_its_state(end, recipe):
    _, engine = trained(short(recipe, settle=0.5), steps=8)
    engine.deploy()
    tensors = engine.tensors()
    state = [weakref.ref(tensors[name]) for name in tensors if not name.endswith("/weight")]
    del tensors
    assert state and all(held() is not None for held in state)
    getattr(engine, end)()
    gc.collect()
    assert not [held for held in state if held() is not None]


def test_a_finished_training_has_no_state_to_give_or_take():
    _, engine = trained("ste", steps=2)
    state = engine.state_dict()
    engine.finish()
    for late in (engine.state_dict, lambda: engine.load_state_dict(state)):
        with pytest.raises(RuntimeError, match="finished and has no state any more"):
            late()
