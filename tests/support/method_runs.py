"""Train the toy by a method, by its four verbs and by `nxm_hf.attach`, and compare both runs with a reference."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch

from nxm_hf import NxMConfig, attach
from nxm_hf.methods import ADMM, Masked, Phases
from nxm_hf.methods.schedules import ALWAYS, Clock, Constant, Every
from nxm_hf.patterns import NM
from tests.support.references import Algorithm1, by_hand
from tests.support.toy_training import OPTIMIZERS, Toy, loss_at, train, weights

STEPS = 36
LOOKS = range(3, STEPS, 4)  # the steps after which what would be deployed is compared too
PATTERN = NM(2, 4)
CLOSE = dict(rtol=1e-9, atol=1e-11)  # of fp64, where the same sums are done in another order
OVER_OPTIMIZERS = pytest.mark.parametrize("optimizer", OPTIMIZERS)


def is_adaptive(optimizer):
    """Return True if the optimizer cancels a scale of the gradient."""
    return isinstance(optimizer, torch.optim.Adam)  # which AdamW is too


def by_verbs(method, make_optimizer):
    """Train by calling the four verbs around the step. Yields what the forward pass used and what was deployed."""
    model = Toy(dtype=torch.float64)
    optimizer = make_optimizer(model.parameters())
    layers = [linear.weight for linear in model.linears]
    adaptive = is_adaptive(optimizer)

    def clock(step):
        return Clock(step, STEPS, adaptive=adaptive)

    with torch.no_grad():
        states = [method.init(weight, clock(0)) for weight in layers]
    for step in range(STEPS):
        used = weights(model)
        optimizer.zero_grad()
        loss_at(step, model).backward()
        with torch.no_grad():
            for weight, state in zip(layers, states, strict=True):
                method.before_step(weight, state, clock(step))
            optimizer.step()
            for weight, state in zip(layers, states, strict=True):
                method.after_step(weight, state, clock(step + 1))
        pairs = zip(layers, states, strict=True)
        yield used, [deployed_by(method, *pair, clock(step + 1)) for pair in pairs if step in LOOKS]


def deployed_by(method, weight, state, clock):
    shown = weight.detach().clone()
    method.finish(shown, state, clock)
    return shown


def by_attach(method, make_optimizer):
    """Train by a plain loop with an engine attached to it, which makes the phases itself."""
    config = NxMConfig(recipe=method)
    if isinstance(method, Phases):
        config = NxMConfig(recipe=method.method, warmup=method.warmup, settle=method.settle)
    model = Toy(dtype=torch.float64)
    optimizer = make_optimizer(model.parameters())
    engine = attach(model, optimizer, config, total_steps=STEPS)
    used, shown = weights(model), []
    for done in train(model, optimizer, 0, STEPS):
        if done - 1 in LOOKS:
            with engine.deployed():
                shown = weights(model)
        yield used, shown
        used, shown = weights(model), []


def by_algorithm_1(optimizer, **settings):
    """Train by Algorithm 1 as printed. Yields what the forward pass used and what was deployed."""
    for used, _, deployed in by_hand(optimizer, partial(Algorithm1, **settings), STEPS):
        yield used, deployed


def assert_agrees(method, make_optimizer, reference, **tolerance):
    """Assert that verbs, engine and reference give the same weights and zeros at every step, used and deployed."""
    runs = by_verbs(method, make_optimizer), by_attach(method, make_optimizer), reference
    for step, (verbs, attached, (used, shown)) in enumerate(zip(*runs, strict=True)):
        expected = [*used, *(shown if step in LOOKS else [])]
        for got, again, wanted in zip(verbs[0] + verbs[1], attached[0] + attached[1], expected, strict=True):
            assert torch.equal(got, again), f"the engine differs from the verbs at step {step}"
            assert torch.equal(got == 0, wanted == 0), f"other masks at step {step}"
            torch.testing.assert_close(got, wanted, **{**CLOSE, **tolerance})
    assert step == STEPS - 1


def near(tensor, numbers):
    expected = torch.tensor([numbers], dtype=torch.float64)
    return torch.allclose(tensor.detach().double(), expected, rtol=0, atol=1e-12)


@dataclass(frozen=True)
class Ramp:
    """From one value to another over the training."""

    begin: float
    end: float

    def __call__(self, clock):
        return self.begin + (self.end - self.begin) * clock.progress


@dataclass(frozen=True)
class Stages:
    """3:4 for the first third, then 2:4."""

    def __call__(self, clock):
        return NM(3, 4) if clock.progress < 1 / 3 else NM(2, 4)


@dataclass(frozen=True)
class After:
    """True from a step on."""

    step: int

    def __call__(self, clock):
        return clock.step >= self.step


TWO_FOUR = Constant(PATTERN)
MASKED = {
    "ste": Masked(TWO_FOUR),
    "sr-ste": Masked(TWO_FOUR, pull=Constant(2e-2)),
    "asp": Masked(TWO_FOUR, freeze=ALWAYS),
    "freeze": Masked(TWO_FOUR, refresh=Every(50), freeze=After(STEPS // 2)),
    "reset": Masked(TWO_FOUR, reset=Every(9)),
    "regularize": Masked(TWO_FOUR, shrink=Constant(2e-2)),
    "rare-and-weak": Masked(TWO_FOUR, refresh=Every(5), grad_scale=Constant(0.1)),
    "decay-by-chain": Masked(TWO_FOUR, gain=Ramp(1.0, 0.0), grad_scale=Ramp(1.0, 0.0)),
    "decay-in-the-graph": Masked(TWO_FOUR, gain=Ramp(0.9, 0.0), refresh=Every(3), chain=True),
    "decay-by-ste": Masked(TWO_FOUR, gain=Ramp(0.9, 0.0)),
    "structure-decay": Masked(Stages()),
    "all-eight": Masked(
        Stages(),
        refresh=Every(3),
        gain=Ramp(0.8, 0.0),
        grad_scale=Ramp(1.0, 0.2),
        pull=Ramp(0.0, 2e-2),
        shrink=Ramp(2e-2, 0.0),
        reset=Every(7),
        freeze=After(STEPS - 5),  # when no refresh is due
    ),
}


COUPLED = ADMM(PATTERN, rho=0.3, update=Every(4))
DECOUPLED = ADMM(PATTERN, penalty="decoupled", contraction=0.9, update=Every(4))
