"""The deployed view by itself, without an engine: what it shows, what it records, and the way back."""

import pytest
import torch

from nxm_hf import NxMConfig, verify
from nxm_hf.engine import deployed_view
from nxm_hf.engine.deployed_view import DeployedView
from nxm_hf.engine.preview import BIAS
from nxm_hf.engine.training_view import as_tensor, hold_difference
from nxm_hf.layers.plan import Plan
from nxm_hf.patterns import parse
from tests.support.models import make_bert
from tests.support.toy_training import same

PATTERNS = pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8-transposable", "unstructured:0.5"])


def view_of(pattern="2:4"):
    model, config = make_bert(), NxMConfig(pattern=pattern)
    plan = Plan.of(model, config)
    return model, plan, DeployedView(plan, config)


def weights(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def pruned(plan, names=None):
    """Return a change that prunes weights by magnitude, and holds a copy of each."""

    def change(training):
        for target in plan.targets:
            if names is None or target.name in names:
                training[target.name] = target.matrix().detach().clone()
                target.matrix().copy_(target.pattern.project(target.matrix()))

    return change


@PATTERNS
def test_what_is_shown_is_recorded_and_what_was_there_comes_back(pattern):
    model, plan, view = view_of(pattern)
    before = weights(model)
    view.show(pruned(plan))
    assert view.is_shown and verify(model).ok and model.config.nxm_config["pattern"] == str(parse(pattern))
    assert view.verification.ok and view.record_of(view.verification).density == view.verification.density < 1
    training = [as_tensor(view.training_view(target)) for target in plan.targets]
    view.leave()
    assert not view.is_shown and same(before, weights(model)) and not hasattr(model.config, "nxm_config")
    assert same(training, [target.matrix() for target in plan.targets])
    view.leave()
    assert same(before, weights(model))


def test_the_training_view_of_a_weight_that_was_not_changed_is_the_weight():
    _, plan, view = view_of()
    kept, changed = plan.targets[0], plan.targets[1]
    assert same([view.training_view(changed)], [changed.matrix()]) and not view.training_view(changed).requires_grad
    view.show(pruned(plan, [changed.name]))
    assert view.training_view(kept).data_ptr() == kept.matrix().data_ptr()
    assert not view.training_view(kept).requires_grad, "what is computed from it would hold a graph"
    assert not same([as_tensor(view.training_view(changed))], [changed.matrix()])


def test_biases_that_were_changed_with_the_weights_are_told_and_come_back():
    model, plan, view = view_of()
    before, biases = weights(model), {}

    def change(training):
        pruned(plan)(training)
        for target in plan.targets[::2]:
            biases[target.name + BIAS] = training[target.name + BIAS] = target.layer.bias.detach().clone()
            target.layer.bias.add_(1.0)

    assert view.training_biases() == {}
    view.show(change)
    assert biases and same(view.training_biases(), biases)
    view.leave()
    assert view.training_biases() == {} and same(before, weights(model))


def test_a_sparse_model_that_does_not_train_keeps_its_record():
    """As under an adapter: the record is that of the model, and not of what is trained."""
    model, plan, view = view_of()
    view.show(pruned(plan))
    view.keep()
    record = model.config.nxm_config
    model.requires_grad_(False)
    other = DeployedView(Plan.of(model, NxMConfig(pattern="2:4")), NxMConfig(pattern="2:4"))
    other.show(lambda training: None)
    other.leave()
    assert model.config.nxm_config == record


def test_an_error_halfway_brings_each_changed_weight_back():
    model, plan, view = view_of()
    before = weights(model)

    def change(training):
        pruned(plan, [plan.targets[0].name])(training)
        raise OSError("halfway")

    with pytest.raises(OSError, match="halfway"):
        view.show(change)
    assert not view.is_shown and same(before, weights(model)) and view.verification is None


def test_shown_weights_are_verified_once_unless_they_change():
    _, plan, view = view_of()
    view.show(pruned(plan))
    assert view.verify() is view.verification
    with torch.no_grad():
        plan.targets[0].matrix().fill_(1.0)
    assert not view.verify().ok and view.verification.ok
    view.leave()
    assert view.verify() is not view.verification, "the training view is not what was verified"


def test_what_is_kept_is_the_model_from_then_on():
    model, plan, view = view_of()
    view.show(pruned(plan))
    shown = weights(model)
    view.keep()
    view.leave()
    assert not view.is_shown and same(shown, weights(model)) and model.config.nxm_config["pattern"] == "2:4"


def test_what_is_kept_is_recorded_as_it_is_then():
    model, plan, view = view_of()
    view.show(pruned(plan))
    with torch.no_grad():
        plan.targets[0].matrix().zero_()
    view.keep()
    assert view.verification == verify(model) and view.verification.density < 0.5
    assert model.config.nxm_config["density"] == pytest.approx(view.verification.density)


@pytest.mark.parametrize("at", [0, 5, 11])
def test_an_interrupt_on_the_way_back_is_raised_when_all_weights_are_back(at, monkeypatch, caplog):
    """Each is put back once. A second time would be taken for a change by other code."""
    model, plan, view = view_of()
    before, put_back, calls = weights(model), deployed_view.put_back, []

    def change(training):
        pruned(plan)(training)
        for target in plan.targets:
            hold_difference(training, target.name, target.matrix())

    def stop(*given):
        calls.append(given)
        if len(calls) == at + 1:
            raise KeyboardInterrupt
        put_back(*given)

    view.show(change)
    monkeypatch.setattr(deployed_view, "put_back", stop)
    with pytest.raises(KeyboardInterrupt):
        view.leave()
    assert not view.is_shown and same(before, weights(model)) and not hasattr(model.config, "nxm_config")
    assert len(plan.targets) == 12 and not caplog.messages


def test_weights_that_do_not_hold_their_pattern_are_not_kept():
    _, plan, view = view_of()
    view.show(pruned(plan, [plan.targets[0].name]))
    with pytest.raises(ValueError, match="2:4"):
        view.keep()
