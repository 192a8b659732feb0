"""Which optimizers leave a weight at +0.0 whose gradient and moments are zero: found by trial, for their settings."""

import random

import pytest
import torch
import transformers
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from nxm_hf.engine import zero_updates
from nxm_hf.engine.zero_updates import ZeroUpdates, moments_are_zero
from tests.support.toy_training import bits


class Scaled(torch.optim.SGD):
    """Divides the gradient of each row, or of each column, by its norm, which is 0 where all of it is pruned."""

    def __init__(self, params, dim):
        super().__init__(params, lr=0.1)
        self.defaults["dim"] = self.param_groups[0]["dim"] = dim

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                norms = parameter.grad.norm(dim=group["dim"], keepdim=True)
                parameter.sub_(parameter.grad / norms, alpha=group["lr"])


LEAVE = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd-momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "sgd-nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, maximize=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True, amsgrad=True),
    "adafactor-torch": lambda p: torch.optim.Adafactor(p),
    "adafactor": lambda p: transformers.optimization.Adafactor(p),
    "rmsprop": lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True, weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, weight_decay=0.1),
}
MOVE = {
    "adamw-negative": lambda p: torch.optim.AdamW(p, lr=2.0, weight_decay=0.9),  # 0 times less than 0 is -0.0
    "by-row": lambda p: Scaled(p, 1),
    "by-column": lambda p: Scaled(p, 0),
    "adagrad-started": lambda p: torch.optim.Adagrad(p, initial_accumulator_value=0.1),
}
if hasattr(torch.optim, "Muon"):  # makes the whole matrix orthogonal
    MOVE["muon"] = lambda p: torch.optim.Muon(p)


class NeedsWords(torch.optim.SGD):
    """Cannot be made without what its own constructor sets."""

    def __init__(self, params, word):
        super().__init__(params, lr=0.1)
        self.word = word

    def step(self, closure=None):
        assert self.word
        return super().step(closure)


def averaged(optimizer, parameter):
    """Return the momentum of a parameter, with its gradient averaged into it."""
    momentum = optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
    return momentum.lerp_(parameter.grad, 0.5)


class NormScaled(torch.optim.SGD):
    """Divides its momentum by the norm of all of it, as LAMB does."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                momentum = averaged(self, parameter)
                parameter.sub_(momentum, alpha=group["lr"] / float(momentum.norm()))


class Signed(torch.optim.SGD):
    """Sets all entries to zero, with the sign of the momentum of the entry before."""

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            momentum = averaged(self, parameter)
            parameter.zero_().copysign_(momentum.roll(1, dims=1))


class Counting(torch.optim.SGD):
    """Divides its momentum by the number of its entries that are not zero."""

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            momentum = averaged(self, parameter)
            parameter.sub_(momentum / momentum.count_nonzero())


class Aligned(torch.optim.SGD):
    """Divides its momentum by the product of all of it with the weight, which pruned entries do not change."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                momentum = averaged(self, parameter)
                product = (momentum * parameter)[parameter != 0].abs().sum()
                parameter.sub_(momentum / (1 + product) * (parameter != 0), alpha=group["lr"])


def found(make, *shape):
    parameter = nn.Parameter(torch.randn(shape or (8, 8)))
    return ZeroUpdates(make([parameter])).of(parameter)


@pytest.mark.parametrize("name", LEAVE)
def test_what_leaves_zeros_is_found(name):
    assert found(LEAVE[name])
    assert found(LEAVE[name], 8, 8, 1) or name == "adafactor"  # which has sums over the last dimension there


@pytest.mark.parametrize("name", MOVE)
def test_what_moves_them_is_found(name):
    assert not found(MOVE[name])


def test_what_cannot_be_tried_is_not_trusted_and_the_reason_is_logged(caplog):
    with caplog.at_level("DEBUG", "nxm_hf"):
        assert not found(lambda p: NeedsWords(p, "word"))
    assert "NeedsWords could not be tried on a small weight: AttributeError" in caplog.text


def test_a_trial_leaves_no_trace_on_the_optimizer_or_on_random_numbers():
    parameter = nn.Parameter(torch.randn(8, 8))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    torch.manual_seed(3)
    before = parameter.detach().clone(), torch.get_rng_state(), str(optimizer.param_groups)
    assert ZeroUpdates(optimizer).of(parameter)
    assert torch.equal(bits(parameter), bits(before[0])) and torch.equal(torch.get_rng_state(), before[1])
    assert str(optimizer.param_groups) == before[2] and not optimizer.state and parameter.grad is None


def test_settings_that_change_are_tried_anew_each_in_its_own_group():
    one, other = (nn.Parameter(torch.randn(8, 8)) for _ in range(2))
    optimizer = torch.optim.AdamW([{"params": [one]}, {"params": [other], "lr": 3.0}], lr=0.1, weight_decay=0.5)
    updates = ZeroUpdates(optimizer)
    assert [updates.of(one), updates.of(other)] == [True, False]
    optimizer.param_groups[0]["lr"] = 0.01
    assert updates.of(one)
    optimizer.param_groups[0]["lr"] = 3.0
    assert not updates.of(one)
    optimizer.param_groups[1]["weight_decay"] = 0.0
    assert updates.of(other)


@pytest.mark.parametrize("most", [1, 64])
def test_what_is_remembered_is_what_a_new_trial_finds(most, monkeypatch):
    """Whatever the order of the settings. A decay of 2 turns zeros into -0.0 at rates above a half."""
    monkeypatch.setattr(zero_updates, "MOST", most)
    parameters = [nn.Parameter(torch.randn(8, 8)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": [each]} for each in parameters], lr=0.1)
    updates, chance, outcomes = ZeroUpdates(optimizer), random.Random(0), []
    for _ in range(40):
        group = chance.choice(optimizer.param_groups)
        group["lr"], group["weight_decay"] = chance.choice([0.0, 0.1, 0.4, 0.6, 0.9, 3.0]), chance.choice([0.0, 2.0])
        for parameter in parameters:
            outcomes.append(updates.of(parameter))
            assert outcomes[-1] == ZeroUpdates(optimizer).of(parameter)
            assert len(updates._rates) <= most
    assert set(outcomes) == {True, False}


def test_what_is_remembered_of_a_parameter_says_nothing_of_those_of_another_kind():
    """Adafactor keeps sums over the last dimension, which of a single column are the moments themselves."""
    matrix, stack = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8, 8, 1))
    updates = ZeroUpdates(transformers.optimization.Adafactor([matrix, stack]))
    assert [updates.of(each) for each in (matrix, stack, stack, matrix)] == [True, False, False, True]


def test_nothing_is_claimed_once_another_hook_may_change_the_step():
    parameter = nn.Parameter(torch.randn(8, 8))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    updates = ZeroUpdates(optimizer)
    ours = optimizer.register_step_pre_hook(lambda *_: None)
    assert updates.of(parameter)
    other = optimizer.register_step_pre_hook(lambda *_: None)
    assert not updates.of(parameter)
    other.remove()
    assert updates.of(parameter)
    ours.remove()
    of_all = register_optimizer_step_post_hook(lambda *_: None)
    assert not updates.of(parameter)
    of_all.remove()


@pytest.mark.parametrize("name", [*LEAVE, *MOVE])
def test_an_optimizer_that_trains_each_entry_apart_is_found(name):
    parameter = nn.Parameter(torch.randn(8, 8))
    assert ZeroUpdates({**LEAVE, **MOVE}[name]([parameter])).apart(parameter) == (name != "muon")


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_an_optimizer_that_divides_by_a_norm_does_not_train_entries_apart_at_any_rate(rate):
    parameter = nn.Parameter(torch.randn(8, 8))
    assert not ZeroUpdates(NormScaled([parameter], lr=rate, momentum=0.5)).apart(parameter)


def test_moments_count_only_where_weights_are_not_zero_in_a_trial_as_in_a_training():
    """A trial prunes with zeros: what another number there would change is not looked at."""
    parameter = nn.Parameter(torch.randn(8, 8))
    assert ZeroUpdates(Aligned([parameter], lr=0.1)).apart(parameter)
    assert not ZeroUpdates(Signed([parameter], lr=0.1)).apart(parameter), "zeros of two signs are not the same"
    assert not ZeroUpdates(Counting([parameter], lr=0.1)).apart(parameter), "it is with zeros that moments are cleared"


def test_entries_are_not_said_to_be_apart_where_nothing_can_be_tried():
    parameter, other = (nn.Parameter(torch.randn(8, 8)) for _ in range(2))
    assert not ZeroUpdates(NeedsWords([parameter], "word")).apart(parameter)
    optimizer = torch.optim.AdamW([parameter])
    updates = ZeroUpdates(optimizer)
    assert updates.apart(parameter) and not updates.apart(other) and not optimizer.state
    for _ in range(2):
        optimizer.register_step_post_hook(lambda *_: None)
    assert not updates.apart(parameter)


def test_a_parameter_of_no_group_is_not_trusted():
    assert not ZeroUpdates(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)).of(nn.Parameter(torch.ones(2, 2)))


def test_moments_are_zero_only_where_every_single_entry_is():
    where = torch.eye(4).bool()
    off = torch.where(where, 0.0, 1.0)
    rows = {"step": torch.tensor(3.0), "row": torch.ones(4, 1), "column": torch.ones(4), "name": "adam"}
    assert moments_are_zero({**rows, "exp_avg": off, "exp_avg_sq": -off}, where)
    for wrong in (torch.ones(4, 4), off + torch.nan, torch.where(where, 1e-45, 0.0), off.view(16), off.view(2, 8)):
        assert not moments_are_zero({**rows, "exp_avg": wrong}, where)
    assert not moments_are_zero({"exp_avg": torch.ones(1, 4)}, torch.ones(1, 4).bool())
    wide = torch.zeros(2, 8).bool()
    assert moments_are_zero({"row": torch.ones(2), "column": torch.ones(1, 8)}, wide)
    assert not moments_are_zero({"exp_avg": torch.ones(9)}, wide)
