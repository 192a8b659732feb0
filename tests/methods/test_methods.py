"""Each method against the same law written in another form, and against the worked examples of the papers' algorithms.

The references are: masked training as a torch parametrization with an autograd function; Algorithm 1 of "Advances in
Sparse Training" as it is printed; ASP in place, as apex does it; and ADMM with Z and U and its penalty in the loss.
Each trains the same toy on the same batches as we do, by the four verbs and by `nxm_hf.attach`.
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from nxm_hf import NxMConfig, attach
from nxm_hf.methods import ADMM, PHASES, DenseTraining, Masked, Method, Phases, keep, restore_dense
from nxm_hf.methods.schedules import ALWAYS, NEVER, Clock, Constant, Evenly, Every
from nxm_hf.patterns import NM, parse
from tests.support.toy_training import OPTIMIZERS, Toy, has_negative_zeros, loss_at, train, weights

STEPS = 36
LOOKS = range(3, STEPS, 4)  # the steps after which what would be shipped is compared too
PATTERN = NM(2, 4)
CLOSE = dict(rtol=1e-9, atol=1e-11)  # of fp64, where the same sums are done in another order


def top(scores, n=2, m=4):
    """The mask of the n largest of each m, lower index first, by counting who is beaten by whom."""
    groups = scores.reshape(-1, m)
    index = torch.arange(m)
    larger = groups[:, None, :] > groups[:, :, None]
    equal_and_before = (groups[:, None, :] == groups[:, :, None]) & (index[None, :] < index[:, None])
    return ((larger | equal_and_before).sum(-1) < n).reshape(scores.shape)


def is_adaptive(optimizer):
    """Whether a scale of the gradient would be divided out again."""
    return isinstance(optimizer, torch.optim.Adam)  # which AdamW is too


# Our side of the comparison


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
    words = {"recipe": method}
    if isinstance(method, Phases):
        words = {"recipe": method.method, "warmup": method.warmup, "settle": method.settle}
    model = Toy(dtype=torch.float64)
    optimizer = make_optimizer(model.parameters())
    engine = attach(model, optimizer, NxMConfig(**words), total_steps=STEPS)
    used, shown = weights(model), []
    for done in train(model, optimizer, 0, STEPS):
        if done - 1 in LOOKS:
            with engine.deployed():
                shown = weights(model)
        yield used, shown
        used, shown = weights(model), []


OVER_OPTIMIZERS = pytest.mark.parametrize("optimizer", OPTIMIZERS)


def assert_agrees(method, make_optimizer, reference, **tolerance):
    """By verbs, attached and by the reference, weights and their zeros are the same at every step, used and shipped."""
    runs = by_verbs(method, make_optimizer), by_attach(method, make_optimizer), reference
    for step, (verbs, attached, (used, shown)) in enumerate(zip(*runs, strict=True)):
        expected = [*used, *(shown if step in LOOKS else [])]
        for got, again, wanted in zip(verbs[0] + verbs[1], attached[0] + attached[1], expected, strict=True):
            assert torch.equal(got, again), f"the engine differs from the verbs at step {step}"
            assert torch.equal(got == 0, wanted == 0), f"other masks at step {step}"
            torch.testing.assert_close(got, wanted, **{**CLOSE, **tolerance})
    assert step == STEPS - 1


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
        self.mask, self.gain, self.scale, self.pull = None, 0.0, 1.0, 0.0

    def forward(self, dense):
        if self.mask is None:
            return dense
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
            law.mask = top(original.detach().abs(), *_counts(method.pattern(clock)))

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
        final = _counts(method.pattern(Clock(STEPS, STEPS)))
        masks = [
            law.mask if frozen else top(original.detach().abs(), *final)
            for law, original in zip(laws, dense, strict=True)
        ]
        yield used, [original.detach() * mask for original, mask in zip(dense, masks, strict=True)]


def _counts(pattern):
    return pattern.n, pattern.m


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


def by_algorithm_1(make_optimizer, r=1, s=1.0, v=None, z=None, beta=0.0):
    model = Toy(dtype=torch.float64)
    optimizer = make_optimizer(model.parameters())
    layers = {name: p for name, p in model.named_parameters() if p.dim() == 2 and "blocks" in name}
    splits = {}
    for t in range(1, STEPS + 1):
        if t == 1 or (t - 1) % r == 0:
            splits = {name: top(w.detach().abs()) for name, w in layers.items()}
        participating = {name: (w.detach() * splits[name]).requires_grad_() for name, w in layers.items()}
        optimizer.zero_grad()
        loss_at(t - 1, _With(model, participating)).backward()
        for name, w in layers.items():
            g = participating[name].grad
            w.grad = g if is_adaptive(optimizer) else torch.where(splits[name], g, s * g)
        before = {name: w.detach().clone() for name, w in layers.items()}
        optimizer.step()
        for name, w in layers.items():
            n = ~splits[name]
            if is_adaptive(optimizer) and s != 1:
                w.data[n] = before[name][n] + s * (w.data[n] - before[name][n])
            w.data[n] -= beta * w.data[n]
            if (v is not None and t >= v) or (z is not None and t % z == 0):
                w.data[n] = 0.0
        yield (
            [p.detach() for p in participating.values()],
            [w.detach() * top(w.detach().abs()) for w in layers.values()],
        )


class _With(nn.Module):
    """A model called with other weights in the place of its own."""

    def __init__(self, model, others):
        super().__init__()
        self.model, self.others = [model], others  # in a list, so that it is no submodule

    def parameters(self, recurse=True):
        return self.model[0].parameters()

    def forward(self, x):
        return torch.func.functional_call(self.model[0], self.others, (x,))


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
    assert_agrees(method, make_optimizer, by_algorithm_1(make_optimizer, **settings))


@OVER_OPTIMIZERS
@pytest.mark.parametrize("settle", [0.25, 0.5])
def test_settle_after_ste_is_fix(settle, optimizer):
    """FIX zeroes the non-participating weights from step v on, which is to freeze the mask of step v - 1."""
    make_optimizer, end = OPTIMIZERS[optimizer], STEPS - round(settle * STEPS)
    method = Phases(Masked(TWO_FOUR), PATTERN, settle=settle)
    assert_agrees(method, make_optimizer, by_algorithm_1(make_optimizer, v=end + 1))


# ASP in place, as apex does it


def by_apex(make_optimizer):
    model = Toy(dtype=torch.float64)
    optimizer = make_optimizer(model.parameters())
    layers = [linear.weight for linear in model.linears]
    masks = [top(weight.detach().abs()) for weight in layers]
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


# ADMM with Z and U, and its penalty in the loss


def by_three_tensors(make_optimizer, rho=0.0, every=4, start="C", dual=True, contraction=0.0):
    """Sub-problem 1 by the optimizer, on the loss with its penalty; sub-problem 2 and the dual step each K steps."""
    model = Toy(dtype=torch.float64)
    optimizer = make_optimizer(model.parameters())
    layers = [linear.weight for linear in model.linears]
    z = [w.detach().clone() for w in layers]
    u = [torch.zeros_like(w) for w in layers]

    def update():
        for i, w in enumerate(layers):
            moved = w.detach() + u[i]
            z[i] = moved * top(moved.abs())
            u[i] = moved - z[i] if dual else torch.zeros_like(moved)

    if start == "C":
        update()
    if start == "B":
        z = [w.detach() * top(w.detach().abs()) for w in layers]
    for t in range(1, STEPS + 1):
        used = weights(model)
        optimizer.zero_grad()
        penalty = sum(((w - a + b) ** 2).sum() for w, a, b in zip(layers, z, u, strict=True))
        (loss_at(t - 1, model) + rho / 2 * penalty).backward()
        for w, a, b in zip(layers, z, u, strict=True):
            w.data -= contraction / every * (w.data - a + b)
        optimizer.step()
        if t % every == 0:
            update()
        yield used, [w.detach() * top(w.detach().abs()) for w in layers]


COUPLED = ADMM(PATTERN, rho=0.3, update=Every(4))
DECOUPLED = ADMM(PATTERN, penalty="decoupled", contraction=0.9, update=Every(4))


@OVER_OPTIMIZERS
@pytest.mark.parametrize(("start", "dual"), [("A", True), ("B", True), ("C", True), ("C", False)])
def test_coupled_admm_is_three_tensors_with_the_penalty_in_the_loss(start, dual, optimizer):
    make_optimizer = OPTIMIZERS[optimizer]
    expected = by_three_tensors(make_optimizer, rho=0.3, start=start, dual=dual)
    assert_agrees(replace(COUPLED, start=start, dual=dual), make_optimizer, expected)


@OVER_OPTIMIZERS
@pytest.mark.parametrize("dual", [True, False], ids=["dual", "no-dual"])
def test_decoupled_admm_moves_part_of_the_way_beside_the_optimizer(dual, optimizer):
    make_optimizer = OPTIMIZERS[optimizer]
    expected = by_three_tensors(make_optimizer, contraction=0.9, dual=dual)
    assert_agrees(replace(DECOUPLED, dual=dual), make_optimizer, expected)


def test_under_plain_sgd_coupled_and_decoupled_are_one():
    """W - lr (G + rho (W - R)) = (W - lr rho (W - R)) - lr G: a contraction of lr rho K an interval."""
    rho, every, lr = 0.5, 4, 0.1
    coupled = replace(COUPLED, rho=rho, update=Every(every))
    decoupled = replace(DECOUPLED, contraction=lr * rho * every, update=Every(every))
    assert_agrees(coupled, OPTIMIZERS["sgd"], by_verbs(decoupled, OPTIMIZERS["sgd"]))


def test_under_adam_they_are_not():
    last = [list(by_verbs(method, OPTIMIZERS["adam"]))[-1] for method in (COUPLED, DECOUPLED)]
    assert not torch.allclose(last[0][0][0], last[1][0][0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4", "3:4"])
def test_one_tensor_holds_z_and_u_bit_for_bit(pattern, dtype):
    """algorithms.md 1.2: R = Z - U, and the mask of |R| is the mask of |V|."""
    pattern = parse(pattern)
    method = ADMM(pattern, rho=1.0, update=Every(1))
    w = torch.randn(16, 32, dtype=dtype)
    state = method.init(w, Clock(0, 20))
    z = torch.where(top(w.abs(), pattern.n, pattern.m), w, 0)
    u = w - z
    for t in range(1, 21):
        w = w + 0.3 * torch.randn_like(w)
        before = top((z - u).abs(), pattern.n, pattern.m)
        method.after_step(w, state, Clock(t, 20))
        v = w + u
        mask = top(v.abs(), pattern.n, pattern.m)
        z = torch.where(mask, v, 0)
        u = v - z
        assert torch.equal(state["r"], z - u)
        assert torch.equal(top(state["r"].abs(), pattern.n, pattern.m), mask)
        came, left, kept = state["moved"].tolist()
        assert (came, left) == (int((mask & ~before).sum()), int((before & ~mask).sum())) and kept == int(before.sum())
    assert int(state["updates"]) == 21


# Worked examples


T = torch.tensor([[0.9, -0.5, 0.4, 0.1]], dtype=torch.float64)
VECTOR_A = {
    "A": [
        ([0.9, -0.5, 0.4, 0.1], [0.9, -0.5, -0.4, -0.1]),
        ([0.9, -0.5, 0.0, 0.0], [0.9, -0.5, -0.4, -0.1]),
        ([0.9, -0.5, 0.0, 0.0], [0.9, -0.5, -0.4, -0.1]),
    ],
    "B": [
        ([0.9, -0.5, 0.2, 0.05], [0.9, -0.5, -0.2, -0.05]),
        ([0.9, -0.5, 0.1, 0.025], [0.9, -0.5, -0.3, -0.075]),
        ([0.9, -0.5, 0.05, 0.0125], [0.9, -0.5, -0.35, -0.0875]),
    ],
    "C": [([0.9, -0.5, 0.0, 0.0], [0.9, -0.5, -0.4, -0.1])] * 2,
}


def near(tensor, numbers):
    expected = torch.tensor([numbers], dtype=torch.float64)
    return torch.allclose(tensor.detach().double(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("start", VECTOR_A)
def test_admm_on_vector_a_from_each_start(start):
    """Sub-problem 1 solved exactly, W = (T + rho R) / (1 + rho) with rho = 1."""
    method = ADMM(PATTERN, rho=1.0, update=Every(1), start=start)
    state = method.init(T.clone(), Clock(0, 3))
    for k, (w, r) in enumerate(VECTOR_A[start], start=1):
        weight = (T + state["r"]) / 2
        assert near(weight, w)
        method.after_step(weight, state, Clock(k, 3))
        assert near(state["r"], r)


@pytest.mark.parametrize("penalty", ["coupled", "decoupled"])
def test_admm_on_vector_b_winds_up_and_flips(penalty):
    settings = {"coupled": {"rho": 0.5}, "decoupled": {"contraction": 0.1 * 0.5 * 2}}[penalty]
    method = ADMM(PATTERN, penalty=penalty, update=Every(2), start="A", **settings)
    weight = nn.Parameter(torch.tensor([[1.0, -0.6, 0.5, 0.3]], dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    expected = [
        ([0.9815, -0.5815, 0.4815, 0.263], [0.9815, -0.5815, -0.4815, -0.263]),
        ([0.9664225, -0.5664225, 0.377345, 0.18419], [0.9664225, 0.5664225, 0.858845, -0.44719]),
        (
            [0.9541343375, -0.449346175, 0.426074925, 0.1102122],
            [0.9541343375, -1.015768675, -0.426074925, -0.5574022],
        ),
    ]
    with torch.no_grad():
        state = method.init(weight, Clock(0, 6))
        for step in range(6):
            weight.grad = weight.detach() - T
            method.before_step(weight, state, Clock(step, 6))
            optimizer.step()
            method.after_step(weight, state, Clock(step + 1, 6))
            if step % 2:
                w, r = expected[step // 2]
                assert near(weight, w) and near(state["r"], r)


def first_interval(contraction, loser, rival):
    """V of a pruned weight after the first interval on a flat loss, and whether it flipped in."""
    steps = 5000
    method = ADMM(PATTERN, penalty="decoupled", contraction=contraction, update=Every(steps))
    weight = torch.tensor([[1.0, rival, loser, 0.0]], dtype=torch.float64)
    state = method.init(weight, Clock(0, steps))
    for step in range(steps):
        weight.grad = torch.zeros_like(weight)
        method.before_step(weight, state, Clock(step, steps))
        method.after_step(weight, state, Clock(step + 1, steps))
    r = state["r"][0]
    return float(r[2].abs()), bool(r[2] > 0) and bool(r[1] < 0)


@pytest.mark.parametrize(("contraction", "value", "flips"), [(0.5, 0.0364, True), (0.75, 0.0283, False)])
def test_a_pruned_weight_winds_up_to_twice_itself_less_the_contraction(contraction, value, flips):
    v, flipped = first_interval(contraction, loser=0.030, rival=0.031)
    assert round(v, 4) == value and flipped is flips


@pytest.mark.parametrize(("contraction", "flips"), [(math.log(2) - 0.005, True), (math.log(2) + 0.005, False)])
def test_a_near_tie_flips_back_below_a_contraction_of_ln_two(contraction, flips):
    assert first_interval(contraction, loser=0.030, rival=0.030 * (1 + 1e-6))[1] is flips


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


# What rho means when it is measured


def test_an_automatic_rho_makes_the_first_pull_three_thousandths_of_the_gradient():
    weight = nn.Parameter(torch.randn(8, 16))
    method = ADMM(PATTERN)
    with torch.no_grad():
        state = method.init(weight, Clock(0, 80))
        gradient = 1e-3 * torch.randn(8, 16)
        weight.grad = gradient.clone()
        method.before_step(weight, state, Clock(0, 80))
    torch.testing.assert_close((weight.grad - gradient).norm(), 0.003 * gradient.norm(), rtol=1e-3, atol=0)
    measured = float(state["rho"])
    with torch.no_grad():
        weight.grad = 5 * gradient
        method.before_step(weight, state, Clock(1, 80))
    assert float(state["rho"]) == measured, "it is measured once"


def test_an_automatic_rho_waits_for_a_step_with_a_gradient_and_a_pull():
    weight = nn.Parameter(torch.randn(8, 16))
    method = ADMM(PATTERN, start="A", update=Every(2))
    with torch.no_grad():
        state = method.init(weight, Clock(0, 8))
        weight.grad = torch.ones_like(weight)
        method.before_step(weight, state, Clock(0, 8))  # R = W: there is no pull yet
        assert float(state["rho"]) == 0 and torch.equal(weight.grad, torch.ones_like(weight))
        method.after_step(weight, state, Clock(2, 8, since=0))
        weight.grad = torch.zeros_like(weight)
        method.before_step(weight, state, Clock(2, 8))  # no gradient yet
        assert float(state["rho"]) == 0 and not weight.grad.any()
        weight.grad = torch.ones_like(weight)
        method.before_step(weight, state, Clock(2, 8))
        assert float(state["rho"]) > 0


# Small facts


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


@pytest.mark.parametrize("name", MASKED)
def test_finish_leaves_the_state_as_it_is(name):
    method, weight = MASKED[name], torch.randn(8, 8)
    state = method.init(weight, Clock(0, STEPS))
    copy = {slot: tensor.clone() for slot, tensor in state.items()}
    shown = weight.clone()
    mask = method.finish(shown, state, Clock(0, STEPS))
    assert state.keys() == copy.keys() and all(torch.equal(state[slot], copy[slot]) for slot in copy)
    assert PATTERN.violations(shown) == 0 and torch.equal(shown != 0, mask)


def test_the_final_pattern_is_shipped_whatever_holds_now():
    method, weight = Masked(Stages()), torch.randn(8, 8)
    state = method.init(weight, Clock(0, STEPS))
    assert int(weight.count_nonzero()) == 48  # 3:4 while training
    method.finish(weight, state, Clock(0, STEPS))
    assert int(weight.count_nonzero()) == 32  # 2:4 when shipped


class KeepsTheLast:
    """A user's method that prunes the first half of each four, whatever its size."""

    init = staticmethod(lambda weight, clock: {})
    before_step = after_step = staticmethod(lambda weight, state, clock: None)

    def finish(self, weight, state, clock):
        mask = (torch.arange(weight.shape[-1]) % 4 >= 2).expand_as(weight)
        keep(weight, mask)
        return mask


def test_the_frozen_mask_is_the_one_that_finish_returned():
    """Solved anew from the weight it would prefer an earlier zero to a kept weight that just is zero."""
    method = Phases(KeepsTheLast(), PATTERN, settle=0.5)
    weight = torch.tensor([[4.0, 3.0, 2.0, 0.0]])
    state = method.init(weight, Clock(0, 2))
    method.after_step(weight, state, Clock(1, 2))
    assert weight.tolist() == [[0.0, 0.0, 2.0, 0.0]] and PHASES[state["phase"]] == "settle"
    assert state["mask"].tolist() == [[False, False, True, True]]


def test_infinity_is_the_largest_and_is_kept():
    weight = torch.tensor([[1.0, -math.inf, 2.0, 3.0]])
    method = Masked(TWO_FOUR)
    method.init(weight, Clock(0, 1))
    assert weight.tolist() == [[0.0, -math.inf, 0.0, 3.0]]


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


def test_never_is_the_default_of_reset_and_freeze():
    method = Masked(TWO_FOUR)
    assert (method.reset, method.freeze, method.refresh) == (NEVER, NEVER, Every(1))
