"""What every method promises, and what is a method."""

import math

import pytest
import torch
from torch import nn

from nxm_hf.methods import ADMM, DenseTraining, Masked, Method, keep, restore_dense
from nxm_hf.methods.schedules import Clock, Evenly
from tests.support.method_runs import COUPLED, DECOUPLED, MASKED, PATTERN, STEPS, TWO_FOUR
from tests.support.toy_training import has_negative_zeros


def test_whoever_has_the_four_verbs_is_a_method():
    class Mine:
        init = before_step = after_step = finish = lambda *arguments: None

    class Half:
        init = before_step = after_step = lambda *arguments: None

    assert isinstance(Mine(), Method) and not isinstance(Half(), Method) and not isinstance("admm", Method)
    assert not isinstance(DenseTraining(PATTERN), Masked) and issubclass(Masked, Method)


def test_what_is_kept_and_what_is_pruned_is_written_without_negative_zeros():
    """Pitfall 1."""
    weight = torch.tensor([-1.0, -0.0, -2.0, 0.5])
    keep(weight, torch.tensor([True, True, False, False]))
    assert weight.tolist() == [-1.0, 0.0, 0.0, 0.0] and not has_negative_zeros(weight)


@pytest.mark.parametrize(
    "method", [Masked(TWO_FOUR), ADMM(PATTERN), ADMM(PATTERN, start="B"), DenseTraining(PATTERN)], ids=str
)
def test_nan_in_a_weight_is_an_error(method):
    weight = torch.tensor([[1.0, math.nan, 2.0, 3.0]])
    with pytest.raises(ValueError, match="1 NaN of 4"):
        method.finish(weight, method.init(weight, Clock(0, 1)), Clock(0, 1))


def test_what_the_optimizer_trains_can_be_put_back():
    weight = torch.randn(8, 8)
    before = weight.clone()
    state = Masked(TWO_FOUR).init(weight, Clock(0, 1))
    assert not torch.equal(weight, before)
    restore_dense(weight, state)
    assert torch.equal(weight, before)
    restore_dense(weight, {})
    assert torch.equal(weight, before)


METHODS = {
    **MASKED,
    "admm": COUPLED,
    "decoupled": DECOUPLED,
    "even": ADMM(PATTERN, update=Evenly(8)),
    "dense": DenseTraining(PATTERN),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_step_without_a_gradient_has_no_pull(name):
    """The optimizer leaves such a weight alone; so does what we would add to its gradient."""
    method, weight = METHODS[name], nn.Parameter(torch.randn(8, 8))
    with torch.no_grad():
        state = method.init(weight, Clock(0, STEPS))
        trained = state.get("dense", weight).clone()
        method.before_step(weight, state, Clock(0, STEPS))
    assert weight.grad is None and torch.equal(weight, trained)


@pytest.mark.parametrize("name", METHODS)
def test_a_transposed_weight_is_trained_as_its_transpose(name):
    """Conv1D stores [in, out]; all edits go through views, so both layouts must end alike."""
    method, values = METHODS[name], torch.randn(8, 16)
    plain, stored = values.clone(), values.t().clone(memory_format=torch.contiguous_format)
    turned = stored.t()
    assert not turned.is_contiguous()
    states = [method.init(weight, Clock(0, STEPS)) for weight in (plain, turned)]
    for step in range(8):
        gradient = torch.randn(8, 16)
        for weight, state in zip((plain, turned), states, strict=True):
            weight.grad = gradient.clone() if weight is plain else gradient.t().contiguous().t()
            method.before_step(weight, state, Clock(step, STEPS))
            weight.sub_(weight.grad, alpha=0.1)
            method.after_step(weight, state, Clock(step + 1, STEPS))
        torch.testing.assert_close(plain, stored.t(), rtol=1e-5, atol=1e-6)
        assert turned.data_ptr() == stored.data_ptr()


@pytest.mark.parametrize("spoiled", [None, "dense", "negative zero", "negative zero that is kept"])
def test_a_method_that_calls_a_weight_finished_would_change_no_bit_of_it(spoiled):
    weight = torch.randn(8, 8).abs()
    method = Masked(TWO_FOUR, freeze=lambda clock: True)
    state, clock = method.init(weight, Clock(0, 2)), Clock(1, 2)
    row, column = (state["mask"] == (spoiled == "negative zero that is kept")).nonzero()[0].tolist()
    if spoiled:
        weight[row, column] = 1.0 if spoiled == "dense" else -0.0
    before = weight.clone()
    claimed = method.is_finished(weight, state, clock)
    method.finish(weight, state, clock)
    assert claimed == (spoiled is None) == torch.equal(before.view(torch.int32), weight.view(torch.int32))
