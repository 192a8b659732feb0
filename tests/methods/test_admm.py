"""ADMM against three tensors Z, U and W with the penalty in the loss, and against worked examples."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from nxm_hf.methods import ADMM
from nxm_hf.methods.admm import sparse_weight
from nxm_hf.methods.rho import MEASURED_STEPS, PULL_OVER_GRADIENT
from nxm_hf.methods.schedules import Clock, Constant, Evenly, Every, EveryEpoch, Growth
from nxm_hf.patterns import parse
from tests.support.method_runs import (
    CLOSE,
    COUPLED,
    DECOUPLED,
    OVER_OPTIMIZERS,
    PATTERN,
    STEPS,
    Ramp,
    assert_agrees,
    by_attach,
    by_verbs,
    near,
)
from tests.support.references import top
from tests.support.toy_training import OPTIMIZERS, Toy, loss_at, weights


def by_three_tensors(
    make_optimizer,
    rho=0.0,
    every=4,
    start="C",
    dual=1.0,
    contraction=0.0,
    growth=lambda done: 1.0,
    fisher=False,
    pruned_only=False,
):
    """Sub-problem 1 by the optimizer, on the loss with its penalty; sub-problem 2 and the dual step each K steps."""
    model = Toy(dtype=torch.float64)
    optimizer = make_optimizer(model.parameters())
    layers = [linear.weight for linear in model.linears]
    z = [w.detach().clone() for w in layers]
    u = [torch.zeros_like(w) for w in layers]
    pulled = [torch.full_like(w, not pruned_only) for w in layers]  # 1 where there is a penalty

    def metric(w):
        return optimizer.state[w]["exp_avg_sq"].sqrt() if fisher and "exp_avg_sq" in optimizer.state[w] else 1.0

    def update(scale=1.0):
        for i, w in enumerate(layers):
            moved = w.detach() + u[i]
            mask = top(moved.abs() * metric(w), PATTERN)
            z[i] = moved * mask
            pulled[i] = 1.0 - mask.to(w.dtype) if pruned_only else pulled[i]
            u[i] = scale * (u[i] + dual * (w.detach() - z[i]))

    if start == "C":
        update()
    if start == "B":
        masks = [top(w.detach().abs(), PATTERN) for w in layers]
        z = [w.detach() * mask for w, mask in zip(layers, masks, strict=True)]
        pulled = [
            1.0 - mask.to(w.dtype) if pruned_only else torch.ones_like(w) for w, mask in zip(layers, masks, strict=True)
        ]
    strength = rho * growth(0.0)
    for t in range(1, STEPS + 1):
        used = weights(model)
        optimizer.zero_grad()
        penalty = sum((on * (w - a + b) ** 2).sum() for w, a, b, on in zip(layers, z, u, pulled, strict=True))
        (loss_at(t - 1, model) + strength / 2 * penalty).backward()
        for w, a, b, on in zip(layers, z, u, pulled, strict=True):
            w.data -= contraction / every * on * (w.data - a + b)
        optimizer.step()
        if t % every == 0:
            before, strength = strength, rho * growth(t / STEPS)
            update(before / strength if rho else 1.0)
        yield used, [w.detach() * top(w.detach().abs() * metric(w), PATTERN) for w in layers]


@OVER_OPTIMIZERS
@pytest.mark.parametrize(("start", "dual"), [("A", True), ("B", True), ("C", True), ("C", False)])
def test_coupled_admm_is_three_tensors_with_the_penalty_in_the_loss(start, dual, optimizer):
    make_optimizer = OPTIMIZERS[optimizer]
    expected = by_three_tensors(make_optimizer, rho=0.3, start=start, dual=dual)
    assert_agrees(replace(COUPLED, start=start, dual=dual), make_optimizer, expected)


@OVER_OPTIMIZERS
@pytest.mark.parametrize("start", ["A", "B", "C"])
@pytest.mark.parametrize("dual", [0.3, 1.0])
def test_a_damped_dual_and_a_growing_rho_are_those_of_three_tensors(dual, start, optimizer):
    make_optimizer, growth = OPTIMIZERS[optimizer], Growth("geometric", 0.05)
    expected = by_three_tensors(make_optimizer, 2.0, start=start, dual=dual, growth=lambda done: 0.05 ** (1 - done))
    assert_agrees(replace(COUPLED, rho=2.0, start=start, dual=dual, growth=growth), make_optimizer, expected)


@pytest.mark.parametrize("start", ["A", "B", "C"])
@pytest.mark.parametrize("dual", [0.0, 0.3, 1.0])
def test_a_strength_that_grows_from_nothing_is_that_of_three_tensors(dual, start):
    expected = by_three_tensors(OPTIMIZERS["adamw"], 2.0, start=start, dual=dual, growth=lambda done: done)
    method = replace(COUPLED, rho=2.0, start=start, dual=dual, growth=Ramp(0.0, 1.0))
    assert_agrees(method, OPTIMIZERS["adamw"], expected)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "momentum"])
@pytest.mark.parametrize("dual", [0.0, 0.6, 1.0])
def test_projections_in_the_metric_of_the_second_moment_are_those_of_three_tensors(dual, optimizer):
    """By magnitude at step 0, when Adam has no second moment yet, and under SGD, which has none."""
    method = replace(COUPLED, start="B", dual=dual, scores="fisher", projection="fisher")
    expected = by_three_tensors(OPTIMIZERS[optimizer], rho=0.3, start="B", dual=dual, fisher=True)
    for ours, theirs in zip(by_attach(method, OPTIMIZERS[optimizer]), expected, strict=True):
        for one, other in zip([*ours[0], *ours[1]], [*theirs[0], *(theirs[1] if ours[1] else [])], strict=True):
            torch.testing.assert_close(one, other, **CLOSE)


@OVER_OPTIMIZERS
@pytest.mark.parametrize("start", ["A", "B", "C"])
@pytest.mark.parametrize("dual", [0.0, 0.6, 1.0])
def test_a_pull_on_pruned_weights_alone_is_a_penalty_without_the_kept_ones(dual, start, optimizer):
    make_optimizer, growth = OPTIMIZERS[optimizer], Growth("geometric", 0.05)
    shared = {"start": start, "dual": dual, "pruned_only": True}
    expected = by_three_tensors(make_optimizer, 2.0, growth=lambda done: 0.05 ** (1 - done), **shared)
    method = replace(COUPLED, rho=2.0, start=start, dual=dual, growth=growth, pull="pruned")
    assert_agrees(method, make_optimizer, expected)
    expected = by_three_tensors(make_optimizer, contraction=0.9, **shared)
    assert_agrees(replace(DECOUPLED, start=start, dual=dual, pull="pruned"), make_optimizer, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("text", ["2:4", "2:4-transposable", "block:4x4:0.5", "unstructured:0.4"])
@pytest.mark.parametrize("method", [COUPLED, DECOUPLED], ids=["coupled", "decoupled"])
def test_a_pull_on_pruned_weights_changes_no_bit_of_a_kept_one(method, text, dtype):
    method = replace(method, pattern=parse(text), pull="pruned")
    w = nn.Parameter(torch.randn(16, 32, generator=torch.Generator().manual_seed(0)).to(dtype))
    before, w.grad = w.detach().clone(), torch.full_like(w, 0.25)
    with torch.no_grad():  # as in an engine
        state = method.init(w, Clock(0, 8))
        method.before_step(w, state, Clock(0, 8))
    kept = method.pattern.nearest(before)
    moved = (w.detach() != before) | (w.grad != 0.25)
    assert not moved[kept].any() and moved[~kept].float().mean() > 0.9


@pytest.mark.parametrize("text", ["2:4", "4:8", "2:4-transposable", "block:4x4:0.5", "unstructured:0.4"])
@pytest.mark.parametrize("dual", [0.0, 0.6, 1.0])
def test_a_rescaled_dual_is_a_factor_on_pruned_entries_alone(dual, text):
    pattern = parse(text)
    plain, grown = (
        ADMM(pattern, 1.0, update=Every(1), start="C", dual=dual, growth=growth)
        for growth in (Constant(1.0), Growth("linear", 0.5))
    )
    w = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    states = [method.init(w, Clock(0, 2)) for method in (plain, grown)]
    for method, state in zip((plain, grown), states, strict=True):
        method.after_step(w, state, Clock(1, 2))
    z = [sparse_weight(pattern, state) for state in states]
    torch.testing.assert_close(z[0], z[1])
    assert torch.equal(z[0] != 0, z[1] != 0) and int(z[0].count_nonzero()) == pattern.kept(w.shape)
    duals = [one - state["r"] for one, state in zip(z, states, strict=True)]
    torch.testing.assert_close(duals[1], duals[0] * (0.5 / 0.75), rtol=1e-6, atol=1e-7)


@OVER_OPTIMIZERS
@pytest.mark.parametrize("dual", [True, False], ids=["dual", "no-dual"])
def test_decoupled_admm_moves_part_of_the_way_beside_the_optimizer(dual, optimizer):
    make_optimizer = OPTIMIZERS[optimizer]
    expected = by_three_tensors(make_optimizer, contraction=0.9, dual=dual)
    assert_agrees(replace(DECOUPLED, dual=dual), make_optimizer, expected)


@pytest.mark.parametrize("start", ["A", "B", "C"])
@pytest.mark.parametrize("dual", [0.0, 0.6, 1.0])
def test_only_a_damped_dual_takes_memory_of_its_own(dual, start):
    """Else Z and U are the kept and the pruned entries of R."""
    state = replace(COUPLED, start=start, dual=dual).init(torch.randn(4, 8), Clock(0, 8))
    assert ("u" in state) == (0 < dual < 1)


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


@pytest.mark.parametrize("loss_scale", [1.0, 1024.0])
@pytest.mark.parametrize("pull", ["all", "pruned"])
@pytest.mark.parametrize("dual", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("start", ["B", "C"])
def test_a_measured_strength_makes_the_first_pull_a_share_of_the_gradient(start, dual, pull, loss_scale):
    """The pull is W - Z + U, and rho the norm of the gradient over its own, times a constant."""
    generator = torch.Generator().manual_seed(0)
    w, gradient = torch.randn(2, 8, 16, generator=generator, dtype=torch.float64)
    weight, clock = nn.Parameter(w.clone()), Clock(0, 80, loss_scale=loss_scale)
    method = ADMM(PATTERN, start=start, dual=dual, pull=pull)
    with torch.no_grad():
        state = method.init(weight, clock)
        weight.grad = 5 * loss_scale * gradient
        method.before_step(weight, state, clock)
    mask = top(w.abs(), PATTERN)
    force = torch.where(mask, 0.0, w) * (1 + dual if start == "C" else 1)
    rho = PULL_OVER_GRADIENT * 5 * gradient.norm() / force.norm()
    torch.testing.assert_close(weight.grad / loss_scale - 5 * gradient, rho * force)
    with torch.no_grad():
        weight.grad = loss_scale * gradient
        method.before_step(weight, state, clock.but(step=1))
    torch.testing.assert_close(weight.grad / loss_scale - gradient, rho * force)  # it is measured once


@pytest.mark.parametrize("pull", ["all", "pruned"])
def test_a_strength_by_a_quantile_pulls_from_the_step_on_at_which_enough_gradients_are_known(pull):
    generator = torch.Generator().manual_seed(0)
    weight, clock = nn.Parameter(torch.randn(8, 16, generator=generator, dtype=torch.float64)), Clock(0, 80)
    gradients = torch.randn(MEASURED_STEPS + 2, 8, 16, generator=generator, dtype=torch.float64)
    method, mask = ADMM(PATTERN, "quantile", start="B", pull=pull), top(weight.detach().abs(), PATTERN)
    pruned, kept = (torch.where(each, weight.detach(), 0.0) for each in (~mask, mask))
    groups = (gradients[:MEASURED_STEPS].mean(0).abs() * ~mask).view(-1, 4).amax(1)
    ratios = groups / kept.abs().masked_fill(~mask, math.inf).view(-1, 4).amin(1)
    rho = float(ratios.sort()[0][math.ceil(0.9 * len(ratios)) - 1])
    with torch.no_grad():
        state = method.init(weight, clock)
        for step, gradient in enumerate(gradients):
            weight.grad = gradient.clone()
            method.before_step(weight, state, clock)
            strength = rho if step >= MEASURED_STEPS - 1 else 0.0
            torch.testing.assert_close(weight.grad, gradient + strength * pruned, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("pull", ["all", "pruned"])
@pytest.mark.parametrize("projection", ["magnitude", "fisher"])
@pytest.mark.parametrize("dual", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("start", ["A", "B", "C"])
@pytest.mark.parametrize("rho", [0.1, 1, None, "quantile", "decoupled"])
def test_a_state_holds_what_its_settings_need_and_nothing_else(rho, start, dual, projection, pull):
    """Each tensor of the weight's size is memory, and each number is in the checkpoints."""
    penalty, rho = ("decoupled", None) if rho == "decoupled" else ("coupled", rho)
    for growth in (Constant(1.0), Growth("linear", 0.5)):
        shared = {"projection": projection, "pull": pull, "growth": growth}
        method = ADMM(PATTERN, rho, 1.0, penalty, Every(1), start, dual, **shared)
        weight = nn.Parameter(torch.randn(8, 16))
        expected = {"r", "updates", "moved"}
        expected |= {"rho"} if penalty == "coupled" and rho in (None, "quantile") else set()
        expected |= {"gradient"} if rho == "quantile" else set()
        expected |= {"growth"} if penalty == "coupled" and growth != Constant(1.0) else set()
        expected |= {"u"} if 0 < dual < 1 else set()
        masked = {"mask"} if 0 < dual < 1 or projection == "fisher" or pull == "pruned" else set()
        with torch.no_grad():
            state = method.init(weight, Clock(0, 4))
            assert state.keys() == expected | (masked if start != "A" else set())
            assert all(state[slot].dtype == torch.float64 for slot in state.keys() & {"rho", "growth"})
            weight.grad = torch.randn(8, 16)
            method.before_step(weight, state, Clock(0, 4))
            method.after_step(weight, state, Clock(1, 4))
        assert state.keys() - {"gradients"} == expected | masked
        assert all(state[slot].dtype == torch.float64 for slot in state.keys() & {"rho", "growth"})
        assert int(state["updates"]) == 1 + (start == "C")


@pytest.mark.parametrize("pull", ["all", "pruned"])
@pytest.mark.parametrize("dual", [0.0, 0.6, 1.0])
def test_a_measured_strength_is_measured_once_and_grows_beside_that(dual, pull):
    growth = Growth("linear", 0.5)
    method = ADMM(PATTERN, update=Every(1), dual=dual, pull=pull, growth=growth)
    weight, zero = nn.Parameter(torch.randn(8, 16, dtype=torch.float64)), torch.zeros(8, 16, dtype=torch.float64)
    with torch.no_grad():
        state = method.init(weight, Clock(0, 8))
        weight.grad = torch.randn(8, 16, dtype=torch.float64)
        method.before_step(weight, state, Clock(0, 8))
        measured = float(state["rho"])
        for step in range(8):
            force = weight - state["r"]
            force = force if pull == "all" else torch.where(state["mask"], 0.0, force)
            weight.grad = zero.clone()
            method.before_step(weight, state, Clock(step, 8))
            torch.testing.assert_close(weight.grad, measured * growth(Clock(step, 8)) * force)
            weight.add_(torch.randn(8, 16, dtype=torch.float64), alpha=0.1)
            method.after_step(weight, state, Clock(step + 1, 8))
            assert float(state["rho"]) == measured and state["rho"].dtype == torch.float64


@pytest.mark.parametrize("pull", ["all", "pruned"])
@pytest.mark.parametrize("dual", [0.6, 1.0])
def test_a_state_that_was_saved_before_the_strength_grew_begins_with_the_strength_of_its_next_update(dual, pull):
    plain = ADMM(PATTERN, 1.0, update=Every(1), dual=dual, pull=pull)
    weight = torch.randn(8, 16, dtype=torch.float64)
    states = [plain.init(weight, Clock(0, 10)) for _ in range(2)]
    assert not {each.data_ptr() for each in states[0].values()} & {each.data_ptr() for each in states[1].values()}
    for method, state in zip((plain, replace(plain, growth=Growth("linear", 0.1))), states, strict=True):
        method.after_step(weight, state, Clock(3, 10))
    assert torch.equal(states[0]["r"], states[1]["r"]) and float(states[1]["growth"]) == 0.1 + 0.9 * 0.3


@pytest.mark.parametrize("pull", ["all", "pruned"])
def test_a_contraction_of_more_than_the_whole_way_is_the_whole_way(pull):
    method = ADMM(PATTERN, penalty="decoupled", contraction=9.0, update=Every(2), pull=pull)
    before = torch.randn(8, 16, dtype=torch.float64)
    weight = before.clone()
    state = method.init(weight, Clock(0, 4))
    weight.grad = torch.zeros_like(weight)
    method.before_step(weight, state, Clock(0, 4))
    assert torch.allclose(weight, torch.where(top(before.abs(), PATTERN), before, -before))


def test_an_update_per_epoch_is_refused_at_once_where_its_length_is_unknown():
    method = ADMM(PATTERN, update=EveryEpoch())
    with pytest.raises(ValueError, match="epoch"):
        method.init(torch.randn(4, 8), Clock(0, 8))
    assert method.init(torch.randn(4, 8), Clock(0, 8, epoch=2))["updates"] == 1


def test_the_defaults_are_those_of_the_documents():
    assert ADMM(PATTERN) == ADMM(
        PATTERN, None, 1.0, "coupled", Evenly(80), "C", True, "magnitude", "magnitude", Constant(1.0), "all"
    )
    assert ADMM(PATTERN).dual is True


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


@pytest.fixture
def new_memory_holds_nan():
    """Have torch fill what `torch.empty` returns with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("new_memory_holds_nan")
@pytest.mark.parametrize("projection", ["magnitude", "fisher"])
@pytest.mark.parametrize("dual", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("start", ["A", "B", "C"])
def test_nothing_is_read_from_memory_that_was_not_written(start, dual, projection):
    assert torch.empty(3).isnan().all()
    method = replace(COUPLED, rho=2.0, start=start, dual=dual, projection=projection, growth=Growth("linear", 0.1))
    weight = torch.randn(8, 16)
    state = method.init(weight, Clock(0, STEPS))
    method.after_step(weight, state, Clock(STEPS, STEPS))
    assert not any(value.isnan().any() for value in state.values() if value.is_floating_point())
