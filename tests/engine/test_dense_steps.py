"""A dense weight in place of a model's weight within a step: what moves, and that all of it moves back."""

import pytest
import torch
import transformers
from torch import nn

from nxm_hf import AdamW
from nxm_hf.engine.dense_steps import DenseSteps
from nxm_hf.solvers import base
from tests.support.toy_training import same


def made(optimizer=torch.optim.AdamW, **words):
    """Three parameters with gradients, an optimizer of them that has moments, and a dense weight of the second."""
    parameters = [nn.Parameter(torch.randn(4, 8)) for _ in range(3)]
    stepper = optimizer([{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.3}], lr=0.1, **words)
    for parameter in parameters:
        parameter.grad = torch.randn(4, 8)
    stepper.step()
    return parameters, stepper, torch.randn(4, 8)


def test_a_step_moves_the_dense_weight_with_the_gradient_and_the_moments_of_the_models():
    parameters, optimizer, dense = made()
    steps, before, moments = DenseSteps(optimizer), parameters[1].detach().clone(), optimizer.state[parameters[1]]
    expected = nn.Parameter(dense.clone())
    assert steps.ask(parameters[1], dense) and steps.trains(parameters[1]) and not steps.trains(parameters[0])
    steps.begin()
    assert dense.grad is parameters[1].grad and optimizer.state[dense] is moments
    assert list(map(id, optimizer.state)) == [id(parameters[0]), id(dense), id(parameters[2])]
    optimizer.step()
    steps.end()
    assert dense.grad is None and optimizer.state[parameters[1]] is moments and steps.trains(parameters[1])
    assert [list(map(id, group["params"])) for group in optimizer.param_groups] == [
        list(map(id, parameters[:2])),
        list(map(id, parameters[2:])),
    ]
    assert list(map(id, optimizer.state)) == list(map(id, parameters))
    assert same([parameters[1]], [before]) and not torch.equal(dense, expected)
    steps.forget()
    assert not steps.trains(parameters[1])


def test_a_state_dict_is_the_same_inside_and_outside():
    parameters, optimizer, dense = made()
    outside, steps = optimizer.state_dict(), DenseSteps(optimizer)
    steps.ask(parameters[1], dense)
    steps.begin()
    inside = optimizer.state_dict()
    assert inside["param_groups"] == outside["param_groups"] and list(inside["state"]) == list(outside["state"])
    steps.forget()
    assert list(map(id, optimizer.state)) == list(map(id, parameters))


def test_the_dense_weight_of_the_next_step_is_told_until_it_is_forgotten_with_the_masks_that_wait(monkeypatch):
    pytest.importorskip("numba", reason="the kernels for CPUs need numba")
    monkeypatch.setattr(base, "MIN_NUMEL", 0)
    parameters, optimizer, dense = made(AdamW)
    steps = DenseSteps(optimizer)
    assert steps.dense_of(parameters[1]) is None and steps.ask(parameters[1], dense)
    assert steps.dense_of(parameters[1]) is dense and steps.dense_of(parameters[0]) is None
    assert optimizer.mask_next_step(parameters[0], parameters[0] > 0) and optimizer.waits_with_mask(parameters[0])
    steps.forget()
    assert steps.dense_of(parameters[1]) is None and not optimizer.waits_with_mask(parameters[0])


def test_nothing_is_exchanged_unless_it_was_asked_for():
    parameters, optimizer, dense = made()
    steps = DenseSteps(optimizer)
    for act in (steps.begin, steps.end, steps.forget):
        act()
        assert list(map(id, optimizer.state)) == list(map(id, parameters)) and dense.grad is None


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(8, 4), torch.zeros(8, 4).T, torch.zeros(4, 8).double(), torch.zeros(4, 16)[:, ::2]],
    ids=["shape", "layout", "dtype", "stride"],
)
def test_a_dense_weight_that_is_stored_otherwise_is_copied(wrong):
    parameters, optimizer, _ = made()
    assert not DenseSteps(optimizer).ask(parameters[1], wrong) and not DenseSteps(optimizer).trains(parameters[1])


def test_an_optimizer_that_is_not_torchs_or_has_other_hooks_is_not_asked():
    """It may keep a list of its own parameters, and another hook would see weights that are not the model's."""
    parameters, foreign, dense = made(transformers.optimization.Adafactor, relative_step=False)
    assert not DenseSteps(foreign).ask(parameters[1], dense)
    parameters, optimizer, dense = made(torch.optim.SGD)
    assert DenseSteps(optimizer).ask(parameters[1], dense)
    for _ in range(2):
        optimizer.register_step_post_hook(lambda *_: None)
    assert not DenseSteps(optimizer).ask(parameters[1], dense)
