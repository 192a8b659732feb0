"""The two views of an engine: the weights in training, and the weights that would be deployed."""

import json
import logging
import math
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nxm_hf import NxMConfig, attach, prune, verify
from nxm_hf.engine import deployed_view, preview
from nxm_hf.engine import engine as engine_module
from nxm_hf.layers.find import find_layers
from nxm_hf.patterns import parse
from nxm_hf.solvers import cpu, reference_only
from nxm_hf.storage.verify import verify_targets
from tests.support import toy_training
from tests.support.grids import EACH_SPARSE_RECIPE, WINDOWS
from tests.support.models import assert_equal_weights, make_bert
from tests.support.toy_training import (
    TOTAL,
    Toy,
    adamw,
    all_tensors,
    assert_sparse,
    loss_at,
    same,
    short,
    train,
    trained,
    weights,
)


@EACH_SPARSE_RECIPE
@WINDOWS
def test_at_every_step_the_deployed_view_is_sparse_and_the_training_view_comes_back(recipe, window):
    """Pitfalls 1 and 2: true zeros in what is deployed; and looking at it changes nothing."""
    model = Toy()
    optimizer = adamw(model)
    engine = attach(model, optimizer, short(recipe, **window), total_steps=TOTAL)
    for done in [0, *range(1, TOTAL + 1)]:
        if done:
            next(train(model, optimizer, done - 1, done))
        before = all_tensors(model, engine)
        with engine.deployed():
            assert_sparse(model)
            shown = weights(model)
            state = dict(engine.tensors())
            assert same(state, {name: before[name] for name in state}), "the state is that of the training view"
            with engine.deployed():
                assert same(shown, weights(model))
            assert same(shown, weights(model)), "an inner view does not end the outer one"
        assert same(before, all_tensors(model, engine))
    engine.finish()
    assert same(shown, weights(model)), "what is finished is what was shown"


@pytest.mark.parametrize("recipe", ["ste", "asp", "admm", "rigl"])
def test_large_weights_are_pruned_counted_and_held_in_one_pass_with_the_bits_of_the_method(recipe, monkeypatch):
    if not cpu.BACKEND.works() or not cpu.BACKEND.kernels.can_gather():
        pytest.skip("the kernels that gather need numba and AVX-512")
    monkeypatch.setattr(toy_training, "WIDTH", 256)
    model, engine = trained(short(recipe), steps=2, total=TOTAL)
    before = all_tensors(model, engine)
    with reference_only(), engine.deployed():
        expected = weights(model)
    copies = []
    monkeypatch.setattr(engine_module, "hold_difference", lambda *held: copies.append(held))
    with engine.deployed():
        assert same(expected, weights(model)) and engine.verification == verify_targets(engine.plan.targets)
    assert not copies and same(before, all_tensors(model, engine)), "no weight is copied"


@EACH_SPARSE_RECIPE
def test_looking_at_the_deployed_view_does_not_change_the_training(recipe):
    quiet, _ = trained(short(recipe))
    model = Toy()
    optimizer = adamw(model)
    engine = attach(model, optimizer, short(recipe), total_steps=TOTAL)
    for _ in train(model, optimizer, 0, TOTAL):
        with engine.deployed():
            loss_at(0, model)
    assert_equal_weights(model, quiet)


@EACH_SPARSE_RECIPE
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_an_exception_inside_the_deployed_view_brings_the_training_view_back(recipe, error):
    model, engine = trained(short(recipe), steps=4, total=TOTAL)
    before = all_tensors(model, engine)
    with pytest.raises(error), engine.deployed():
        raise error
    assert not engine.is_deployed and same(before, all_tensors(model, engine))


def interrupted_at(number: int, act) -> bool:
    """Raise KeyboardInterrupt when the deployed view calls its `number`-th function. Return False if it calls fewer."""
    left = number

    def count(frame, event, _):
        nonlocal left
        caller = frame.f_back.f_code if event == "call" and frame.f_back is not None else None
        left -= caller is not None and caller.co_filename in (deployed_view.__file__, preview.__file__)
        if left < 0:
            raise KeyboardInterrupt  # Python then removes this function

    sys.setprofile(count)
    try:
        act()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


@pytest.mark.parametrize("recipe", ["ste", "admm"])
def test_an_interrupt_on_the_way_to_the_deployed_view_or_back_leaves_the_training_view(recipe, caplog):
    model, engine = trained(short(recipe), steps=4, total=TOTAL)
    before = all_tensors(model, engine)

    def look():
        with engine.deployed():
            pass

    number = 0
    while interrupted_at(number, look):
        assert not engine.is_deployed and same(before.values(), all_tensors(model, engine).values()), number
        number += 1
    assert number > 3 * len(engine.plan.targets) and not caplog.messages


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
    before = all_tensors(model, engine)
    with pytest.raises(OSError, match="no finish"), engine.deployed():
        pass
    assert not engine.is_deployed and same(before, all_tensors(model, engine))


def test_the_stamp_stands_in_the_config_only_while_the_weights_are_deployed():
    model = make_bert()
    optimizer = adamw(model)
    engine = attach(model, optimizer, "ste", total_steps=2)
    assert not hasattr(model.config, "nxm_config")
    with engine.deployed():
        assert model.config.nxm_config["recipe"] == "ste" and verify(model).ok
        json.dumps(model.config.nxm_config)
    assert not hasattr(model.config, "nxm_config")


def test_the_stamp_of_sparse_layers_that_are_all_frozen_stays_in_every_view():
    prune(model := make_bert(), "2:4")
    for layer in find_layers(model):
        layer.weight.requires_grad_(False)
    recorded = model.config.nxm_config["layers"]
    engine = attach(model, adamw(model), "asp", total_steps=2)
    assert model.config.nxm_config["layers"] == recorded
    with engine.deployed():
        assert verify(model).ok and model.config.nxm_config["layers"] == recorded
    assert model.config.nxm_config["layers"] == recorded
    engine.release()
    assert verify(model).ok


@EACH_SPARSE_RECIPE
@WINDOWS
def test_no_zero_that_is_deployed_is_negative(recipe, window):
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


@pytest.mark.parametrize("changed", [False, True])
def test_what_was_found_in_the_deployed_view_holds_until_a_weight_changes(changed):
    model = Toy()
    engine = attach(model, adamw(model), short("asp"), total_steps=TOTAL)
    with engine.deployed():
        found = engine.verify_deployed()
        if changed:
            with torch.no_grad():
                engine.plan.targets[0].layer.weight.fill_(1.0)
        again = engine.verify_deployed()
    assert (again is found) != changed
    assert again.ok != changed


def test_a_step_inside_the_deployed_view_is_an_error():
    model, engine = trained("ste", steps=2, total=4)
    before = weights(model)
    with engine.deployed():
        loss_at(2, model).backward()
        with pytest.raises(RuntimeError, match=r"engine\.deployed"):
            engine.optimizer.step()
        assert_sparse(model)
    assert same(before, weights(model)) and engine.step == 2


@EACH_SPARSE_RECIPE
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


# -- the end of a training ------------------------------------------------------------------------------------------


@EACH_SPARSE_RECIPE
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


@pytest.mark.parametrize(("rho", "settle", "warned"), [(0.0, 0.0, True), (0.0, 0.5, False), (30.0, 0.0, False)])
def test_admm_that_has_not_converged_ends_with_a_warning_that_names_the_knobs(rho, settle, warned, caplog):
    config = NxMConfig("admm", settings={"rho": rho, "steps": 1, "dual": False}, settle=settle)
    _, engine = trained(config, steps=60, optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.03))
    pruned = engine.metrics()["nxm/residual"]
    assert (pruned > 0.1) == warned
    engine.finish()
    found = [message for message in caplog.messages if "ADMM has not converged" in message]
    assert len(found) == warned
    if warned:
        assert f"pruning takes {pruned:.4f} of the norm" in found[0]
        assert all(knob in found[0] for knob in ("rho", "contraction", "learning rate", "number of steps", "settle="))


def test_finishing_in_time_is_no_warning(caplog):
    _, engine = trained("ste")
    with caplog.at_level(logging.WARNING, logger="nxm_hf"):
        engine.finish()
    assert not caplog.records


@EACH_SPARSE_RECIPE
@WINDOWS
def test_releasing_gives_back_what_the_optimizer_trained(recipe, window):
    model, engine = trained(short(recipe, **window), steps=4, total=TOTAL)
    expected = [weight.clone() for _, weight in engine.trained_weights()]
    with engine.deployed():
        engine.release()
        assert same(expected, weights(model))
    assert same(expected, weights(model)) and engine.finished


def test_releasing_ends_the_training_once_and_leaves_no_hook_and_no_record():
    model = make_bert()
    optimizer = adamw(model)
    engine = attach(model, optimizer, "ste", total_steps=2)
    engine.deploy()
    assert hasattr(model.config, "nxm_config")
    engine.release()
    assert not hasattr(model.config, "nxm_config") and engine.finished
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    before = weights_of(model)
    engine.release()
    engine.undeploy()
    assert same(before, weights_of(model)) and engine.metrics() == {}
    attach(model, optimizer, "ste", total_steps=2).release()
    engine = attach(model, optimizer, "ste", total_steps=2)
    engine.finish()
    before = weights_of(model)
    engine.release()  # of a finished training there is nothing to put back
    assert same(before, weights_of(model)) and verify(model).ok


def weights_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@EACH_SPARSE_RECIPE
def test_deploying_twice_is_deploying_once(recipe):
    model, engine = trained(short(recipe), steps=3, total=TOTAL)
    before = all_tensors(model, engine)
    engine.deploy()
    shown, verification = weights(model), engine.verification
    engine.deploy()
    assert same(shown, weights(model)) and engine.verification is verification and verification.ok
    assert engine.record(verification).density == verification.density == 0.5 or recipe in ("set", "rigl")
    assert engine.record(verification).layers == engine.plan.layers
    for _ in range(2):
        engine.undeploy()
        assert same(before, all_tensors(model, engine)) and not engine.is_deployed


def test_a_weight_that_does_not_hold_its_pattern_cannot_end_a_training():
    model, engine = trained("ste", steps=2)
    with torch.no_grad():
        model.blocks[1].up.weight.fill_(1.0)
    with pytest.raises(ValueError, match=r"blocks\.1\.up breaks 2:4 in 32 places"):
        engine.detach()


def test_an_error_of_a_method_names_the_layer_and_the_step():
    model, engine = trained(short("ste"), steps=2, total=TOTAL)
    loss_at(2, model).backward()
    with torch.no_grad():
        model.blocks[1].up.weight[0, 0] = engine._states["blocks.1.up"]["dense"][0, 0] = math.nan
    with pytest.raises(ValueError, match=r"^Layer blocks\.1\.up, step 2: .* NaN"):
        engine.optimizer.step()


@EACH_SPARSE_RECIPE
def test_metrics_are_of_the_trained_weights_whatever_is_shown(recipe):
    _, engine = trained(short(recipe), steps=4, total=TOTAL)
    metrics = engine.metrics()
    assert metrics and all(name.startswith("nxm/") for name in metrics)
    with engine.deployed():
        assert {k: v for k, v in engine.metrics().items() if k != "nxm/density"} == {
            k: v for k, v in metrics.items() if k != "nxm/density"
        }


@pytest.mark.parametrize(("done", "warned"), [(TOTAL - 1, True), (TOTAL, False)])
def test_an_early_end_is_warned_of_once_whoever_asks(done, warned, caplog):
    _, engine = trained(short("ste"), steps=done, total=TOTAL)
    with caplog.at_level(logging.WARNING, logger="nxm_hf"):
        engine.warn_at_end()
        engine.warn_at_end()
        engine.finish()
    assert len(caplog.messages) == warned


class _Clones(TorchDispatchMode):
    """Records the sizes of all clones in its block."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.clone.default:
            self.sizes.append(args[0].numel())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("recipe, copied", [("asp", False), ("set", False), ("rigl", False), ("admm rho=1", True)])
@pytest.mark.parametrize("optimizer", [adamw, lambda model: torch.optim.SGD(model.parameters(), 0.1, 0.9)])
def test_weights_with_a_frozen_mask_are_deployed_without_a_copy(recipe, copied, optimizer):
    name, _, setting = recipe.partition(" rho=")
    model = Toy()
    chosen = optimizer(model)
    engine = attach(model, chosen, short(name, settings={"rho": 1.0} if setting else {}), total_steps=TOTAL)
    for _ in train(model, chosen, 0, TOTAL - 1):
        pass
    before = all_tensors(model, engine)
    with _Clones() as clones:
        engine.deploy()
    assert_sparse(model)
    engine.undeploy()
    assert bool(clones.sizes) == copied and same(before, all_tensors(model, engine))


def test_a_weight_that_was_changed_between_steps_is_masked_where_it_is_deployed_and_comes_back():
    model, engine = trained(short("asp"), steps=4, total=TOTAL)
    with torch.no_grad():
        model.linears[0].weight.fill_(-0.5)
        model.linears[1].weight[model.linears[1].weight == 0] = -0.0
    before = all_tensors(model, engine)
    with engine.deployed():
        assert_sparse(model)
    assert same(before, all_tensors(model, engine))
