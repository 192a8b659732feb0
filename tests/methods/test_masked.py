"""Masked training against the same law written in other forms, and against the worked examples of the papers.

The references are: a torch parametrization with an autograd function; Algorithm 1 of "Advances in Sparse Training" as
it is printed (see `tests.support.references`); and ASP in place, as apex does it.
"""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from nxm_hf.methods import Masked
from nxm_hf.methods.schedules import ALWAYS, NEVER, Clock, Constant, Every, Frames
from nxm_hf.methods.scores import SCORES
from nxm_hf.patterns import NM, Dense, parse
from nxm_hf.solvers.masked_ops import pull_pruned
from tests.support.method_runs import (
    MASKED,
    OVER_OPTIMIZERS,
    PATTERN,
    STEPS,
    TWO_FOUR,
    After,
    Stages,
    assert_agrees,
    by_algorithm_1,
    by_verbs,
    is_adaptive,
    near,
)
from tests.support.references import top
from tests.support.scores import Remembered
from tests.support.toy_training import OPTIMIZERS, Toy, has_negative_zeros, loss_at, weights

# Masked training as an autograd function under a parametrization


class Law(torch.autograd.Function):
    """W = D * (mask + gain * ~mask) forward; G * (mask + scale * ~mask) + pull * D * ~mask backward."""

    @staticmethod
    def forward(ctx, dense, mask, gain, scale, pull):
        ctx.save_for_backward(dense, mask)
        ctx.scale, ctx.pull = scale, pull
        return dense * (mask.to(dense) + gain * (~mask).to(dense))

    @staticmethod
    def backward(ctx, grad):
        dense, mask = ctx.saved_tensors
        kept, pruned = mask.to(dense), (~mask).to(dense)
        return grad * (kept + ctx.scale * pruned) + ctx.pull * dense * pruned, None, None, None, None


class Parametrization(nn.Module):
    """Computes the weight from the dense one anew in each forward pass."""

    def __init__(self):
        super().__init__()
        self.mask, self.gain, self.scale, self.pull, self.chain = None, 0.0, 1.0, 0.0, False

    def forward(self, dense):
        if self.mask is None:
            return dense
        if self.chain:  # the gradient is what autograd makes of the forward pass
            return dense * (self.mask.to(dense) + self.gain * (~self.mask).to(dense))
        return Law.apply(dense, self.mask, self.gain, self.scale, self.pull)


def by_autograd(method, make_optimizer):
    """Train with the mask in the graph. Once `freeze` is true the pruned weights are zeroed by hand after each step."""
    model = Toy(dtype=torch.float64)
    laws = [Parametrization() for _ in model.linears]
    for linear, law in zip(model.linears, laws, strict=True):
        parametrize.register_parametrization(linear, "weight", law)
    dense = [linear.parametrizations.weight.original for linear in model.linears]
    optimizer = make_optimizer(model.parameters())
    frozen = False

    def solve(clock):
        for original, law in zip(dense, laws, strict=True):
            law.mask = top(original.detach().abs(), method.pattern(clock))

    def freeze():
        for original, law in zip(dense, laws, strict=True):
            original.data[~law.mask] = 0.0

    solve(Clock(0, STEPS))
    if frozen := method.freeze(Clock(0, STEPS)):
        freeze()
    for step in range(STEPS):
        now, then = Clock(step, STEPS), Clock(step + 1, STEPS)
        for law in laws:
            law.gain = 0.0 if frozen else method.gain(now)
            law.scale = 0.0 if frozen else 1.0 if is_adaptive(optimizer) else method.grad_scale(now)
            law.pull = 0.0 if frozen else method.pull(now)
            law.chain = method.chain
        used = weights(model)
        optimizer.zero_grad()
        loss_at(step, model).backward()
        before = [original.detach().clone() for original in dense]
        optimizer.step()
        for original, old, law in zip(dense, before, laws, strict=True):
            pruned, new = ~law.mask, original.data
            if frozen:
                new[pruned] = 0.0
                continue
            if is_adaptive(optimizer):
                new[pruned] = (old + method.grad_scale(then) * (new - old))[pruned]
            new[pruned] *= 1 - method.shrink(then)
            if method.reset(then):
                new[pruned] = 0.0
        due = method.freeze(then)
        if not frozen and (due or method.refresh(then)):
            solve(then)
        if due:
            frozen = True
            freeze()
        final = method.pattern(Clock(STEPS, STEPS))
        masks = [
            law.mask if frozen else top(original.detach().abs(), final)
            for law, original in zip(laws, dense, strict=True)
        ]
        yield used, [original.detach() * mask for original, mask in zip(dense, masks, strict=True)]


@OVER_OPTIMIZERS
@pytest.mark.parametrize("name", MASKED)
def test_masked_training_is_its_autograd_function(name, optimizer):
    method, make_optimizer = MASKED[name], OPTIMIZERS[optimizer]
    assert_agrees(method, make_optimizer, by_autograd(method, make_optimizer))


@pytest.mark.parametrize("name", sorted(set(MASKED) - {"asp"}))
def test_the_masks_of_the_comparison_move(name):
    """The agreement above would be empty if no mask ever changed."""
    zeros = [shown[0] == 0 for _, shown in by_verbs(MASKED[name], OPTIMIZERS["adamw"]) if shown]
    assert sum(int((one ^ other).sum()) for one, other in pairwise(zeros)) > 0


# Algorithm 1 of "Advances in Sparse Training" as printed: t from 1, split, step, exploit the same split


ALGORITHM_1 = {
    "base": (Masked(TWO_FOUR), {}),
    "refresh": (Masked(TWO_FOUR, refresh=Every(5)), {"r": 5}),
    "grad-scale": (Masked(TWO_FOUR, refresh=Every(5), grad_scale=Constant(0.1)), {"r": 5, "s": 0.1}),
    "reset": (Masked(TWO_FOUR, reset=Every(9)), {"z": 9}),
    "regularize": (Masked(TWO_FOUR, shrink=Constant(2e-2)), {"beta": 2e-2}),
    "reset-every-step-is-no-rewiring": (Masked(TWO_FOUR, freeze=ALWAYS), {"z": 1}),
}


@OVER_OPTIMIZERS
@pytest.mark.parametrize("name", ALGORITHM_1)
def test_masked_training_is_algorithm_1(name, optimizer):
    method, settings = ALGORITHM_1[name]
    make_optimizer = OPTIMIZERS[optimizer]
    assert_agrees(method, make_optimizer, by_algorithm_1(optimizer, **settings))


# ASP in place, as apex does it


def by_apex(make_optimizer):
    model = Toy(dtype=torch.float64)
    optimizer = make_optimizer(model.parameters())
    layers = [linear.weight for linear in model.linears]
    masks = [top(weight.detach().abs(), PATTERN) for weight in layers]
    for weight, mask in zip(layers, masks, strict=True):
        weight.data.mul_(mask)
    original = optimizer.step

    def step():
        for weight, mask in zip(layers, masks, strict=True):
            weight.grad.mul_(mask)
        original()
        for weight, mask in zip(layers, masks, strict=True):
            weight.data.mul_(mask)

    optimizer.step = step
    for done in range(STEPS):
        used = weights(model)
        optimizer.zero_grad()
        loss_at(done, model).backward()
        optimizer.step()
        yield used, weights(model)


@OVER_OPTIMIZERS
def test_a_mask_frozen_from_the_start_is_asp_exactly(optimizer):
    make_optimizer = OPTIMIZERS[optimizer]
    assert_agrees(Masked(TWO_FOUR, freeze=ALWAYS), make_optimizer, by_apex(make_optimizer), rtol=0, atol=0)


# Worked examples


W32 = [0.8, -0.3, 0.5, 0.1]
VECTOR_3_2 = {
    "ste": (Masked(TWO_FOUR), [0.2, -0.4, 0.1, 0.3], [0.78, -0.26, 0.49, 0.07]),
    "sr-ste": (
        Masked(TWO_FOUR, pull=Constant(2e-4)),
        [0.2, -0.40006, 0.1, 0.30002],
        [0.78, -0.259994, 0.49, 0.069998],
    ),
    "regularize": (
        Masked(TWO_FOUR, shrink=Constant(2e-4)),
        [0.2, -0.4, 0.1, 0.3],
        [0.78, -0.259948, 0.49, 0.069986],
    ),
    "reset": (Masked(TWO_FOUR, reset=Every(1)), [0.2, -0.4, 0.1, 0.3], [0.78, 0.0, 0.49, 0.0]),
    "fix": (Masked(TWO_FOUR, freeze=After(1)), [0.2, -0.4, 0.1, 0.3], [0.78, 0.0, 0.49, 0.0]),
    "asp": (Masked(TWO_FOUR, freeze=ALWAYS), [0.2, 0.0, 0.1, 0.0], [0.78, 0.0, 0.49, 0.0]),
}


@pytest.mark.parametrize("name", VECTOR_3_2)
def test_one_sgd_step_of_masked_training_by_hand(name):
    method, gradient, after = VECTOR_3_2[name]
    weight = nn.Parameter(torch.tensor([W32], dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with torch.no_grad():
        state = method.init(weight, Clock(0, 1))
        assert near(weight, [0.8, 0.0, 0.5, 0.0])
        weight.grad = torch.tensor([[0.2, -0.4, 0.1, 0.3]], dtype=torch.float64)
        method.before_step(weight, state, Clock(0, 1))
        assert near(weight.grad, gradient)
        optimizer.step()
        method.after_step(weight, state, Clock(1, 1))
    assert near(state.get("dense", weight), after)


def test_the_momentum_of_a_pruned_weight_decays_and_never_reaches_it():
    """Pitfall 4: the optimizer's state is not touched, and the pruned weight stays zero all the same."""
    weight = nn.Parameter(torch.tensor([[1.0, 0.2]], dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    optimizer.state[weight]["momentum_buffer"] = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    method = Masked(Constant(NM(1, 2)), freeze=ALWAYS)
    with torch.no_grad():
        state = method.init(weight, Clock(0, 2))
        for step, (w, buffer) in enumerate([([0.945, 0.0], [0.55, 0.45]), ([0.8855, 0.0], [0.595, 0.405])]):
            weight.grad = torch.tensor([[0.1, 0.3]], dtype=torch.float64)
            method.before_step(weight, state, Clock(step, 2))
            optimizer.step()
            method.after_step(weight, state, Clock(step + 1, 2))
            assert near(weight, w) and near(optimizer.state[weight]["momentum_buffer"], buffer)
            assert not has_negative_zeros(weight)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0])
def test_the_step_trains_the_dense_weight_itself_unless_its_update_is_scaled(scale):
    method, weight, given = Masked(TWO_FOUR, grad_scale=Constant(scale)), torch.randn(4, 8), []
    step = SimpleNamespace(train=lambda dense: given.append(dense) or True)
    state = method.init(weight, Clock(0, 1))
    shown = weight.clone()
    method.before_step(weight, state, Clock(0, 1, weight_step=step))
    assert len(given) == (scale == 1.0) and all(dense is state["dense"] for dense in given)
    assert torch.equal(weight, shown if given else state["dense"])


@pytest.mark.parametrize("freeze", [NEVER, ALWAYS])
def test_the_states_of_two_weights_share_no_memory(freeze):
    weights, method = [torch.randn(4, 8) for _ in range(2)], Masked(TWO_FOUR, freeze=freeze)
    states = [method.init(weight, Clock(0, 1)) for weight in weights]
    tensors = [*weights, *(value for state in states for value in state.values())]
    assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors)


@pytest.mark.parametrize("text", ["2:4", "unstructured:0.5", "2:4-transposable"])
@pytest.mark.parametrize("freeze", [NEVER, ALWAYS])
def test_a_weight_is_finished_only_if_finish_would_change_no_bit_and_a_frozen_one_is(text, freeze):
    """While the dense weight trains, what is shown holds an older mask than that of the end."""
    method, weight = Masked(Constant(parse(text)), refresh=NEVER, freeze=freeze), torch.randn(8, 16)
    state = method.init(weight, Clock(0, 9))
    for step in range(4):
        clock = Clock(step + 1, 9, since=step)
        method.before_step(weight, state, Clock(step, 9))
        weight.add_(torch.randn(8, 16))
        method.after_step(weight, state, clock)
        for change in (0.0, 1.0):
            weight[~state["mask"]] += change
            end = weight.clone()
            method.finish(end, {name: value.clone() for name, value in state.items()}, clock)
            finished = method.is_finished(weight, state, clock)
            assert finished == (freeze is ALWAYS and change == 0.0) and (torch.equal(weight, end) or not finished)
            weight[~state["mask"]] -= change
    assert freeze is ALWAYS or not torch.equal(weight, end)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0, 3.0])
def test_of_pruned_entries_the_gradient_or_under_an_adaptive_optimizer_the_update_is_scaled(scale, adaptive):
    method, weight = Masked(TWO_FOUR, refresh=NEVER, grad_scale=Constant(scale)), torch.randn(4, 8)
    state = method.init(weight, Clock(0, 2))
    dense, mask, gradient = state["dense"].clone(), state["mask"], torch.randn(4, 8)
    weight.grad = gradient.clone()
    method.before_step(weight, state, Clock(0, 2, adaptive=adaptive))
    assert torch.equal(weight, dense) and torch.equal(weight.grad[mask], gradient[mask])
    assert torch.equal(weight.grad[~mask], gradient[~mask] * (1.0 if adaptive else scale))
    update = torch.randn(4, 8)
    weight.add_(update)
    method.after_step(weight, state, Clock(1, 2, since=0, adaptive=adaptive))
    expected = dense + update * torch.where(mask, 1.0, scale if adaptive else 1.0)
    torch.testing.assert_close(state["dense"], expected, rtol=1e-5, atol=1e-6)


class DenseStep:
    """A step that trains the dense weight in place, pulls it to zero if it can, and keeps what it is told."""

    def __init__(self, pulls=False):
        self.dense, self.pulls, self.pull, self.told = None, pulls, None, []
        self.gradient_is_masked = lambda mask, grad, has_no_nan: self.told.append("gradient")
        self.zeros_are_set = lambda mask: self.told.append("zeros")
        self.mask_is_final = lambda mask: self.told.append(mask)
        self.mask_gradient = self.leaves_zeros = lambda mask: False

    def train(self, dense):
        self.dense, self.pull = dense, None
        return True

    def pull_dense(self, mask, factor):
        if not (self.pulls and self.trains_dense):
            return False
        self.pull = mask, self.dense, factor
        return True

    @property
    def trains_dense(self):
        return self.dense is not None


@torch.no_grad()
def by_steps(method, step=None, steps=STEPS, loss_scale=1.0):
    """Train by SGD with a step that is told of the weight. Yields the weight and copies of its state."""
    noise = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(8, 16, generator=noise))
    clock = Clock(0, steps, since=0, weight_step=step, loss_scale=loss_scale)
    state = method.init(weight, clock)
    for done in range(steps):
        weight.grad = torch.randn(8, 16, generator=noise) * loss_scale
        if step is not None:
            step.dense = None
        method.before_step(weight, state, clock.but(step=done, since=done))
        trained = weight if step is None or step.dense is None else step.dense
        if trained is not weight and step.pull is not None:
            pull_pruned(weight.grad, *step.pull)
        trained.sub_(weight.grad / loss_scale, alpha=0.1)
        method.after_step(weight, state, clock.but(step=done + 1, since=done))
        yield [weight.clone(), *(state[slot].clone() for slot in sorted(state))]


@pytest.mark.parametrize("pulls", [False, True])
@pytest.mark.parametrize("name", {**MASKED, "for-good": None})
def test_it_is_the_same_training_whichever_tensor_the_step_trains_and_whoever_pulls(name, pulls):
    """A mask that is final is told once. The method sets gradients and weights to zero where nothing else has."""
    method, step = MASKED.get(name, Masked(TWO_FOUR, refresh=NEVER, freeze=After(STEPS // 2))), DenseStep(pulls)
    frozen = 0
    for one, other in zip(by_steps(method), by_steps(method, step), strict=True):
        assert len(one) == len(other) and all(map(torch.equal, one, other))
        frozen += len(one) == 3  # there is no dense weight any more
    assert step.told.count("gradient") == step.told.count("zeros")
    assert step.told.count("zeros") == frozen - (frozen not in (0, STEPS))
    final = [told for told in step.told if not isinstance(told, str)]
    assert len(final) == (method.refresh == NEVER) and all(torch.equal(mask, one[1]) for mask in final)


@pytest.mark.parametrize("name", MASKED)
def test_a_pull_is_scaled_as_the_loss_is(name):
    """A scale that is a power of two changes no bit."""
    runs = (by_steps(MASKED[name], loss_scale=scale) for scale in (1.0, 2.0**10))
    for one, other in zip(*runs, strict=True):
        assert all(map(torch.equal, one, other))


def test_a_frozen_weight_holds_its_mask_after_every_step_and_moments_are_cleared_where_the_mask_changes():
    """Also where the pattern becomes sparser or dense again while the mask is frozen, as in `gradual` and `acdc`."""
    stages = Frames((NM(3, 4), NM(2, 4), Dense(), NM(1, 4)))
    method = Masked(stages, refresh=Every(1), freeze=ALWAYS, clear="both")
    weight, cleared = nn.Parameter(torch.randn(8, 8)), []
    optimizer = torch.optim.SGD([weight], lr=0.5, momentum=0.9)
    moments = SimpleNamespace(squares=None, clear=lambda where, which: cleared.append((where.clone(), which)))
    changes = 0
    with torch.no_grad():
        state = method.init(weight, Clock(0, 8))
        for step in range(8):
            before = state["mask"].clone()
            weight.grad = torch.randn(8, 8)
            method.before_step(weight, state, Clock(step, 8, moments=moments))
            assert not weight.grad[~before].any()
            optimizer.step()
            method.after_step(weight, state, Clock(step + 1, 8, moments=moments))
            assert not weight[~state["mask"]].any() and not stages(Clock(step + 1, 8)).violations(weight)
            [(where, which)] = cleared
            assert which == "both" and torch.equal(where, before ^ state["mask"])
            changes += int(where.any())
            cleared.clear()
    assert changes >= 3


@pytest.mark.parametrize("freeze", [NEVER, After(3), ALWAYS], ids=["never", "later", "always"])
@pytest.mark.parametrize("scores", SCORES)
def test_each_mask_is_that_of_the_scores_and_the_state_says_how_it_changed(scores, freeze):
    """While the pattern becomes sparser, so that more entries leave than come in."""
    method = Masked(Stages(), refresh=Every(2), freeze=freeze, scores=scores)
    noise = torch.Generator().manual_seed(0)
    weight, squares = torch.randn(8, 16, generator=noise), torch.rand(8, 16, generator=noise) ** 4
    metric = squares.sqrt() if scores == "fisher" else 1.0
    clock = Clock(0, 9, moments=Remembered(squares))
    state = method.init(weight, clock)
    assert torch.equal(state["mask"], top(state.get("dense", weight).abs() * metric, NM(3, 4)))
    for step in range(9):
        is_dense, before, moved = "dense" in state, state["mask"].clone(), state["moved"].tolist()
        method.before_step(weight, state, clock)
        weight.add_(torch.randn(8, 16, generator=noise))
        trained = weight if is_dense else weight * before
        clock = clock.but(step=step + 1, since=step)
        now = before
        if method.refresh(clock) or (is_dense and freeze(clock)):
            now = top(trained.abs() * metric, method.pattern(clock))
            moved = [int((now & ~before).sum()), int((before & ~now).sum()), int(before.sum())]
        dense = trained.clone() if is_dense and not freeze(clock) else trained * now
        method.after_step(weight, state, clock)
        assert torch.equal(state["mask"], now) and state["moved"].tolist() == moved
        is_final = not is_dense and not NM(2, 4).violations(now)
        end = weight.clone()
        found = method.finish(end, state, clock)
        assert torch.equal(found, now if is_final else top(dense.abs() * metric, NM(2, 4)))
        assert torch.equal(end, torch.where(found, dense, 0.0))


@pytest.mark.parametrize("which", ["none", "first", "both"])
def test_at_a_reset_the_moments_of_pruned_weights_are_cleared_as_asked(which):
    method, cleared = Masked(TWO_FOUR, refresh=NEVER, reset=Every(2), clear=which), []
    weight = torch.randn(4, 8)
    clock = Clock(0, 6, moments=SimpleNamespace(squares=None, clear=lambda *what: cleared.append(what)))
    state = method.init(weight, clock)
    for step in range(5):
        method.before_step(weight, state, clock.but(step=step, since=step))
        method.after_step(weight, state, clock.but(step=step + 1, since=step))
    assert method.edits_moments == (which != "none") and len(cleared) == (0 if which == "none" else 2)
    assert all(torch.equal(where, ~state["mask"]) and found == which for where, found in cleared)


# Small facts


@pytest.mark.parametrize("name", MASKED)
def test_finish_leaves_the_state_as_it_is(name):
    method, weight = MASKED[name], torch.randn(8, 8)
    state = method.init(weight, Clock(0, STEPS))
    copy = {slot: tensor.clone() for slot, tensor in state.items()}
    shown = weight.clone()
    mask = method.finish(shown, state, Clock(0, STEPS))
    assert state.keys() == copy.keys() and all(torch.equal(state[slot], copy[slot]) for slot in copy)
    assert PATTERN.violations(shown) == 0 and torch.equal(shown != 0, mask)


def test_the_final_pattern_is_deployed_whatever_holds_now():
    method, weight = Masked(Stages()), torch.randn(8, 8)
    state = method.init(weight, Clock(0, STEPS))
    assert int(weight.count_nonzero()) == 48  # 3:4 while training
    method.finish(weight, state, Clock(0, STEPS))
    assert int(weight.count_nonzero()) == 32  # 2:4 when deployed


def test_infinity_is_the_largest_and_is_kept():
    weight = torch.tensor([[1.0, -math.inf, 2.0, 3.0]])
    method = Masked(TWO_FOUR)
    method.init(weight, Clock(0, 1))
    assert weight.tolist() == [[0.0, -math.inf, 0.0, 3.0]]


def test_never_is_the_default_of_reset_and_freeze():
    method = Masked(TWO_FOUR)
    assert (method.reset, method.freeze, method.refresh) == (NEVER, NEVER, Every(1))
