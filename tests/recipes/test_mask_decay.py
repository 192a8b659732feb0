"""`mask-decay`: its gain and its gradient."""

import math

import pytest
import torch
from torch import nn

from nxm_hf import NxMConfig, recipes
from nxm_hf.methods.schedules import Clock, Decay
from nxm_hf.patterns import NM
from tests.support.recipe_runs import attached

DELTAS = {
    ("linear", 8e-4): {0: 1, 100: 0.92, 500: 0.6, 1000: 0.2, 1250: 0, 2000: 0},
    ("exponential", 1e-4): {0: 1, 100: 0.990050, 500: 0.951229, 1000: 0.904837, 1250: 0.882497, 2000: 0.818731},
}


@pytest.mark.parametrize(("schedule", "rate"), DELTAS)
def test_the_gain_of_mask_decay_is_that_of_the_table(schedule, rate):
    gain = recipes.mask_decay(NM(2, 4), schedule, rate).gain
    for t, delta in DELTAS[schedule, rate].items():
        assert gain(Clock(t, 10_000)) == pytest.approx(delta, abs=5e-7)


def test_without_a_rate_the_gain_falls_over_the_steps_of_the_recipe():
    lines, curves = recipes.mask_decay(NM(2, 4)).gain, recipes.mask_decay(NM(2, 4), "exponential").gain
    assert [lines(Clock(t, 4)) for t in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert [curves(Clock(t, 4)) for t in (0, 2, 4)] == pytest.approx([1.0, math.exp(-2.5), math.exp(-5)])


@pytest.mark.parametrize("schedule", ["linear", "exponential"])
@pytest.mark.parametrize("rate", [None, 0.1])
def test_a_gain_is_never_above_one_and_never_rises(schedule, rate):
    """Also before its start, where a resumed run may stand whose warm-up grew with its length."""
    gains = [Decay(schedule, rate)(Clock(t, 20)) for t in range(-5, 25)]
    assert max(gains) == 1.0 and gains == sorted(gains, reverse=True) and min(gains) >= 0


@pytest.mark.parametrize(("grad", "expected"), [("chain", [0.2, -0.24, 0.1, 0.18]), ("ste", [0.2, -0.4, 0.1, 0.3])])
@pytest.mark.parametrize("adaptive", [False, True])
def test_mask_decay_on_its_vector(grad, expected, adaptive):
    """w = [.8, -.3, .5, .1], delta .6; chain under Adam too, as that is what autograd gives."""
    method = recipes.mask_decay(NM(2, 4), "linear", 0.1, grad)
    weight = nn.Parameter(torch.tensor([[0.8, -0.3, 0.5, 0.1]], dtype=torch.float64))
    clock = Clock(4, 100, adaptive=adaptive)
    with torch.no_grad():
        state = method.init(weight, clock)
        torch.testing.assert_close(weight.tolist()[0], [0.8, -0.18, 0.5, 0.06])
        weight.grad = torch.tensor([[0.2, -0.4, 0.1, 0.3]], dtype=torch.float64)
        method.before_step(weight, state, clock)
    torch.testing.assert_close(weight.grad.tolist()[0], expected)
    assert weight.tolist()[0] == [0.8, -0.3, 0.5, 0.1], "the optimizer trains the dense weight"


def test_an_exponential_gain_is_forced_to_zero_by_settle():
    config = NxMConfig("mask-decay", settings={"schedule": "exponential", "rate": 1e-3}, settle=0.25)
    nonzero = [all(w.all() for w in used) for used, _, _ in attached(config, "adamw", 12)]
    assert nonzero == [True] * 9 + [False] * 3


def test_mask_decay_at_gain_zero_is_ste():
    runs = [
        attached(NxMConfig("mask-decay", settings={"rate": 1e6, "grad": "ste"}), "momentum"),
        attached(NxMConfig("ste"), "momentum"),
    ]
    for step, (ours, of_ste) in enumerate(zip(*runs, strict=True)):
        if step == 0:
            assert all(w.all() for w in ours[0]), "its gain at the first step is 1, whatever the rate"
        else:
            assert ours[0][0].shape == of_ste[0][0].shape and NM(2, 4).violations(ours[0][0]) == 0
