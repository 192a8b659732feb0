"""ADMM against three tensors Z, U and W with the penalty in the loss, and against worked examples."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from nxm_hf.methods import ADMM
from nxm_hf.methods.schedules import Clock, Every
from nxm_hf.patterns import parse
from tests.support.method_runs import COUPLED, DECOUPLED, OVER_OPTIMIZERS, PATTERN, STEPS, assert_agrees, by_verbs, near
from tests.support.references import top
from tests.support.toy_training import OPTIMIZERS, Toy, loss_at, weights


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
            z[i] = moved * top(moved.abs(), PATTERN)
            u[i] = moved - z[i] if dual else torch.zeros_like(moved)

    if start == "C":
        update()
    if start == "B":
        z = [w.detach() * top(w.detach().abs(), PATTERN) for w in layers]
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
        yield used, [w.detach() * top(w.detach().abs(), PATTERN) for w in layers]


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
    z = torch.where(top(w.abs(), pattern), w, 0)
    u = w - z
    for t in range(1, 21):
        w = w + 0.3 * torch.randn_like(w)
        before = top((z - u).abs(), pattern)
        method.after_step(w, state, Clock(t, 20))
        v = w + u
        mask = top(v.abs(), pattern)
        z = torch.where(mask, v, 0)
        u = v - z
        assert torch.equal(state["r"], z - u)
        assert torch.equal(top(state["r"].abs(), pattern), mask)
        came, left, kept = state["moved"].tolist()
        assert (came, left) == (int((mask & ~before).sum()), int((before & ~mask).sum())) and kept == int(before.sum())
    assert int(state["updates"]) == 21


@pytest.mark.parametrize(
    "text", ["2:4-transposable", "3:4-transposable", "block:2:0.5", "block:4x4:0.5", "unstructured:0.4"]
)
def test_every_mask_of_admm_is_that_of_the_nearest_weight(text):
    pattern = parse(text)
    method = ADMM(pattern, rho=1.0, update=Every(1), start="B")
    w = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    state = method.init(w, Clock(0, 6))
    assert torch.equal(state["r"], pattern.project(w))
    z, u = pattern.project(w), torch.zeros_like(w)
    for t in range(1, 7):
        w = w + 0.3 * torch.randn(16, 32, generator=torch.Generator().manual_seed(t))
        method.after_step(w, state, Clock(t, 6))
        z, v = pattern.project(w if t == 1 else w + u), w if t == 1 else w + u
        u = v - z
        assert torch.equal(state["r"], z - u)
    finished = w.clone()
    mask = method.finish(finished, state, Clock(6, 6))
    assert torch.equal(mask, pattern.nearest(w)) and torch.equal(finished, pattern.project(w))


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


# A rho that is measured


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
