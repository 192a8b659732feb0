"""Train the toy by a recipe's config with an engine, and compare it with the same recipe by hand."""

import pytest
import torch

from nxm_hf import NxMConfig, attach
from tests.support.references import by_hand
from tests.support.toy_training import OPTIMIZERS, Toy, train, weights

STEPS = 36
CLOSE = dict(rtol=1e-7, atol=1e-10)  # of fp64, where the same sums are done in another order
OVER_OPTIMIZERS = pytest.mark.parametrize("optimizer", OPTIMIZERS)
VIEWS = ("used", "trained", "deployed")


def attached(config, optimizer, steps=STEPS):
    """Train with an engine. Yields what each step computed with, the weights after it, and what would be deployed."""
    model = Toy(dtype=torch.float64)
    stepper = OPTIMIZERS[optimizer](model.parameters())
    engine = attach(model, stepper, config, total_steps=steps)
    used = weights(model)
    for _ in train(model, stepper, 0, steps):
        trained = [weight.detach().clone() for _, weight in engine.trained_weights()]
        with engine.deployed():
            deployed = weights(model)
        yield used, trained, deployed
        used = weights(model)


def assert_agrees(config, law, optimizer, but=()):
    """Assert that weights and their zeros are the same at every step, in all views but those in `but`."""
    runs = attached(config, optimizer), by_hand(optimizer, law, STEPS)
    for step, (ours, by_our_hand) in enumerate(zip(*runs, strict=True)):
        for view, got, expected in zip(VIEWS, ours, by_our_hand, strict=True):
            if view in but:
                continue
            for one, other in zip(got, expected, strict=True):
                assert torch.equal(one == 0, other == 0), f"other zeros in what is {view} at step {step + 1}"
                torch.testing.assert_close(one, other, **CLOSE)
    assert step == STEPS - 1


def attached_weight(weight, optimizer, recipe, total, pattern="2:4", **fields):
    """Return an engine on a single weight, in a model around it."""
    model = Toy()
    model.blocks[0].up.weight = weight
    return attach(model, optimizer, NxMConfig(recipe, pattern, include=["blocks.0.up"], **fields), total)
