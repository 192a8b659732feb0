"""What every method promises, and what is a method."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nxm_hf.methods import ADMM, DenseTraining, Masked, Method, Rewiring, keep, restore_dense
from nxm_hf.methods.base import measure_alone
from nxm_hf.methods.schedules import ALWAYS, NEVER, Clock, Evenly, Every
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
    "method",
    [Masked(TWO_FOUR), ADMM(PATTERN), ADMM(PATTERN, start="B"), DenseTraining(PATTERN), Rewiring(PATTERN)],
    ids=str,
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


EACH = {
    **METHODS,
    "reset-first": Masked(TWO_FOUR, reset=Every(2), clear="first"),
    "reset-both": Masked(TWO_FOUR, reset=Every(2), clear="both"),
    "frozen": Masked(TWO_FOUR, freeze=ALWAYS, clear="both"),
    "final": Masked(TWO_FOUR, refresh=NEVER, freeze=ALWAYS),
    "measured": ADMM(PATTERN),
    "damped": ADMM(PATTERN, rho=0.1, dual=0.5, update=Every(2)),
    "set": Rewiring(PATTERN, "random", every=2),
    "rigl": Rewiring(PATTERN, "gradient", every=2),
}
OVER_EACH = pytest.mark.parametrize("name", EACH)


def trained(method, steps=6, moments=None, weight=None):
    """Return a weight and its state after some steps of SGD."""
    weight = nn.Parameter(torch.randn(8, 16)) if weight is None else weight
    with torch.no_grad():
        state = method.init(weight, Clock(0, STEPS, moments=moments))
        for step in range(steps):
            weight.grad = torch.randn(8, 16)
            method.before_step(weight, state, Clock(step, STEPS, since=step, moments=moments))
            if weight.grad is not None:
                weight.sub_(weight.grad, alpha=0.1)
            method.after_step(weight, state, Clock(step + 1, STEPS, since=step, moments=moments))
    return weight, state


@OVER_EACH
def test_a_method_says_whether_it_edits_moments(name):
    cleared = []
    trained(EACH[name], moments=SimpleNamespace(squares=None, clear=lambda where, which: cleared.append(which)))
    assert EACH[name].edits_moments == bool(cleared)
    assert set(cleared) <= {getattr(EACH[name], "clear", "both")}


@OVER_EACH
@pytest.mark.parametrize("steps", [0, 6])
def test_no_two_weights_and_states_share_memory(name, steps):
    runs = [trained(EACH[name], steps) for _ in range(2)]
    places = [tensor.untyped_storage().data_ptr() for weight, state in runs for tensor in (weight, *state.values())]
    assert len(places) == len(set(places))


@OVER_EACH
def test_before_there_is_a_second_mask_none_has_changed_and_shares_of_it_are_finite(name):
    _, state = trained(EACH[name], steps=0)
    assert state.get("moved", torch.tensor([0, 0, 1])).tolist() == [0, 0, 1]


@OVER_EACH
@pytest.mark.parametrize("spoiled", [None, "dense", "negative zero", "negative zero that is kept"])
def test_a_method_that_calls_a_weight_finished_would_change_no_bit_of_it(spoiled, name):
    """Those that train a sparse weight say so whenever it is."""
    method, clock = EACH[name], Clock(6, STEPS)
    weight, state = trained(method)
    with torch.no_grad():
        if spoiled and "mask" in state:
            row, column = (state["mask"] == (spoiled == "negative zero that is kept")).nonzero()[0].tolist()
            weight[row, column] = 1.0 if spoiled == "dense" else -0.0
        before = weight.clone()
        claimed = method.is_finished(weight, state, clock)
        method.finish(weight, state, clock)
    unchanged = torch.equal(before.view(torch.int32), weight.view(torch.int32))
    assert claimed <= unchanged
    assert claimed == unchanged == (spoiled is None) or name not in ("asp", "frozen", "final", "set", "rigl")


@pytest.mark.parametrize("name", ["asp", "frozen", "final"])
def test_a_weight_is_not_finished_while_its_mask_breaks_the_final_pattern(name):
    method, clock = EACH[name], Clock(6, STEPS)
    weight, state = trained(method)
    state["mask"][-1, -3:] = True
    with torch.no_grad():
        weight[-1, -3:] = 1.0
    assert not method.is_finished(weight, state, clock)


@pytest.mark.parametrize("name", ["asp", "frozen", "final", "set", "rigl"])
@pytest.mark.parametrize("able", [None, False, True])
def test_a_sparse_weight_gets_no_gradient_and_holds_its_zeros_by_the_step_or_by_the_method(able, name):
    """A step that masks gradients itself is left to do so, and so is one that leaves zeros."""
    asked = []
    step = SimpleNamespace(
        mask_gradient=lambda mask: asked.append(mask) or able,
        leaves_zeros=lambda mask: asked.append(mask) or able,
        gradient_is_masked=lambda *facts: None,
        zeros_are_set=lambda mask: None,
        mask_is_final=lambda mask: None,
    )
    clock = Clock(0, STEPS, since=0, weight_step=None if able is None else step)  # no step that rewires
    method, weight, gradient = EACH[name], nn.Parameter(torch.randn(8, 16)), torch.randn(8, 16)
    with torch.no_grad():
        state = method.init(weight, clock)
        mask, weight.grad = state["mask"], gradient.clone()
        method.before_step(weight, state, clock)
        assert torch.equal(weight.grad, gradient if able else gradient * mask)
        weight.copy_(torch.full_like(weight, 7.0))
        method.after_step(weight, state, clock.but(step=1))
    assert len(asked) == (0 if able is None else 2)
    if name in ("asp", "frozen"):  # the mask is solved anew after each step
        assert int(weight.count_nonzero()) == weight.numel() // 2
    else:
        assert (weight[~mask] == (7.0 if able else 0.0)).all() and (weight[mask] == 7.0).all()


def test_a_measurement_in_one_process_is_sent_what_it_has_yielded():
    got = []

    def measurement():
        for numbers in (torch.tensor([1.0]), torch.tensor([2.0, 3.0])):
            got.append((yield numbers))

    measure_alone(measurement())
    measure_alone(number for number in ())
    assert [numbers.tolist() for numbers in got] == [[1.0], [2.0, 3.0]]
