"""Measured strengths of ADMM: from norms at one step, and from a quantile over the first steps."""

import contextlib
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from nxm_hf import NxMConfig, attach
from nxm_hf.methods import ADMM
from nxm_hf.methods.rho import MEASURED_STEPS, PULL_OVER_GRADIENT, QUANTILE, measure_by_norms, quantile
from nxm_hf.methods.schedules import Clock, Every
from nxm_hf.patterns import NM, parse
from tests.support.scores import Remembered
from tests.support.toy_training import Toy, adamw, all_tensors, load_run, same, save_run, train, trained

PATTERN = NM(2, 4)
SHAPE = 16, 32


def test_the_numbers_of_a_measurement_are_those_of_the_documents():
    assert (MEASURED_STEPS, QUANTILE, PULL_OVER_GRADIENT) == (20, 0.9, 0.003)


# By norms


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
    assert state["rho"].dtype == torch.float64


def sent(measurement, numbers):
    """Return what a measurement returns if it is sent some numbers."""
    next(measurement)
    with pytest.raises(StopIteration) as end:
        measurement.send(numbers)
    return end.value.value


@pytest.mark.parametrize("loss_scale", [1.0, 1000.0])
def test_a_strength_from_norms_is_a_double_that_parts_of_a_weight_agree_on(loss_scale):
    pull, grad = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(1)) * 1e-3
    clock = Clock(0, 1, loss_scale=loss_scale)
    with pytest.raises(StopIteration) as end:
        next(measure_by_norms(pull, grad, clock))
    rho = end.value.value
    assert rho.dtype == torch.float64
    assert float(rho) == 0.003 * (float(grad.norm()) / loss_scale) / float(pull.norm())
    shared = clock.but(whole=object())
    squares = [next(measure_by_norms(pull[rows], grad[rows], shared)) for rows in (slice(4), slice(4, 6))]
    assert all(each.dtype == torch.float64 for each in squares)
    for rows in (slice(4), slice(4, 6)):
        found = sent(measure_by_norms(pull[rows], grad[rows], shared), sum(squares))
        assert float(found) == pytest.approx(float(rho), rel=1e-6) and found.dtype == torch.float64
    for nothing in ((torch.zeros(4), grad), (pull, torch.zeros(4)), (pull, torch.full((4,), torch.nan))):
        with pytest.raises(StopIteration) as end:
            next(measure_by_norms(*nothing, clock))
        assert end.value.value == 0 and end.value.value.dtype == torch.float64


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


# By a quantile


def gradients():
    noise = torch.Generator().manual_seed(3)
    return [1e-2 * torch.randn(SHAPE, generator=noise, dtype=torch.float64) for _ in range(MEASURED_STEPS + 3)]


def measure(pattern, projection="magnitude", loss_scale=1.0, squares=None, tensors=None, empty=0):
    """Return the weight, the state after each step, and what was added to each gradient. Some rows may be zero."""
    weight = nn.Parameter(torch.randn(SHAPE, generator=torch.Generator().manual_seed(4), dtype=torch.float64))
    weight.data[:empty] = 0.0
    method = ADMM(parse(pattern), "quantile", start="B", projection=projection)
    clock = Clock(0, 800, loss_scale=loss_scale, moments=Remembered(squares))
    states, added = [], []
    with torch.no_grad():
        state = method.init(weight, clock)
        for gradient in tensors or gradients():
            weight.grad = gradient * loss_scale
            method.before_step(weight, state, clock)
            states.append(dict(state))
            added.append(weight.grad - gradient * loss_scale)
    return weight.detach(), states, added


def by_numpy(weight, mean, pattern):
    """Return the quantile over groups of max |G pruned| / min |W kept|, in plain loops."""
    mask = parse(pattern).nearest(weight).numpy()
    w, g = weight.abs().numpy(), mean.abs().numpy()
    if pattern == "unstructured:0.4":
        return np.quantile(g[~mask] / w[mask].min(), QUANTILE, method="inverted_cdf")
    if pattern.startswith("block"):
        blocks = [(slice(i, i + 4), slice(j, j + 4)) for i in range(0, SHAPE[0], 4) for j in range(0, SHAPE[1], 4)]
        smallest = min(np.linalg.norm(w[at]) for at in blocks if mask[at].all())
        ratios = [np.linalg.norm(g[at]) / smallest for at in blocks if not mask[at].any()]
        return np.quantile(ratios, QUANTILE, method="inverted_cdf")
    m = parse(pattern).m
    groups = zip(w.reshape(-1, m), g.reshape(-1, m), mask.reshape(-1, m), strict=True)
    return np.quantile([max(b[~k]) / min(a[k]) for a, b, k in groups], QUANTILE, method="inverted_cdf")


@pytest.mark.parametrize("size", [0.0, float("inf")])
def test_a_quantile_that_is_no_strength_is_measured_again_at_the_next_step(size):
    """As long as gradients vanish, and where one has overflowed, there is no pull."""
    strange = [torch.full(SHAPE, size, dtype=torch.float64)] * MEASURED_STEPS
    _, states, added = measure("2:4", tensors=strange)
    assert all(float(state["rho"]) == 0 for state in states)
    assert all(not pull.nan_to_num(0.0, 0.0, 0.0).any() for pull in added)


@pytest.mark.parametrize("loss_scale", [1.0, 1024.0])
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8", "2:4-transposable", "unstructured:0.4", "block:4x4:0.5"])
def test_rho_is_the_quantile_of_the_mean_gradient_over_the_smallest_kept_weight(pattern, loss_scale):
    weight, states, added = measure(pattern, loss_scale=loss_scale)
    mean = torch.stack(gradients()[:MEASURED_STEPS]).mean(0)
    rho = float(states[-1]["rho"])
    assert rho == pytest.approx(by_numpy(weight, mean, pattern), rel=1e-6)
    for step, (state, pull) in enumerate(zip(states, added, strict=True), start=1):
        expected = 0 if step < MEASURED_STEPS else rho
        assert float(state["rho"]) == expected and ("gradient" in state) == (not expected)
        assert state["rho"].dtype == torch.float64
        torch.testing.assert_close(pull, expected * loss_scale * (weight - parse(pattern).project(weight)))


@pytest.mark.parametrize("pattern", ["2:4", "2:4-transposable"])
def test_a_group_of_zeros_is_at_rest_at_any_strength(pattern):
    weight, states, _ = measure(pattern, empty=4)
    mean = torch.stack(gradients()[:MEASURED_STEPS]).mean(0)
    assert float(states[-1]["rho"]) == pytest.approx(by_numpy(weight[4:], mean[4:], pattern), rel=1e-6)


def test_in_the_metric_of_the_second_moment_gradients_and_weights_are_weighed_alike():
    squares = torch.rand(SHAPE, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    weight, states, _ = measure("2:4", "fisher", squares=squares)
    mean = torch.stack(gradients()[:MEASURED_STEPS]).mean(0)
    expected = by_numpy(weight * squares.sqrt(), mean * squares.sqrt(), "2:4")
    assert float(states[-1]["rho"]) == pytest.approx(expected, rel=1e-6)


def test_without_a_gradient_of_any_size_there_is_no_pull_and_the_mean_goes_on():
    nothing = [torch.zeros(SHAPE, dtype=torch.float64)] * MEASURED_STEPS
    _, states, added = measure("2:4", tensors=[*nothing, *gradients()[:1]])
    assert float(states[-2]["rho"]) == 0 and not any(pull.any() for pull in added[:-1])
    assert float(states[-1]["rho"]) > 0 and added[-1].any()


def quantiles(*parts, share):
    """Return the quantile that each of several processes finds, in which each holds a part of the values."""
    found = [quantile(part, share) for part in parts]
    counts = [next(each) for each in found]
    ends = []
    while not ends:
        sums, counts = torch.stack(counts).sum(0), []
        for each in found:
            try:
                counts.append(each.send(sums))
            except StopIteration as end:
                ends.append(end.value)
    return ends


def test_a_quantile_is_the_value_that_numpy_finds():
    values = np.random.default_rng(0).lognormal(sigma=3, size=997).astype(np.float32)
    for share in (0.001, 0.5, 0.9, 1.0):
        expected = np.quantile(values, share, method="inverted_cdf")
        assert quantiles(torch.from_numpy(values), share=share) == [expected]
    assert quantiles(torch.tensor([]), share=0.9) == [0.0]
    assert quantiles(torch.tensor([0.0, torch.nan, -torch.nan]), share=0.9) == [torch.inf]


def test_a_quantile_over_several_processes_is_that_of_all_values():
    """Values that differ in their last bits alone, and equal ones; the last process has none."""
    values = torch.rand(120, generator=torch.Generator().manual_seed(0))
    values[60:] = 0.5 + torch.arange(60).div(3).floor() * 2**-23
    for share in (0.2, 0.6, 0.9):
        expected = np.quantile(values.numpy(), share, method="inverted_cdf")
        assert quantiles(values[:50], values[50:], values[:0], share=share) == [expected] * 3


@pytest.mark.parametrize("times", [1, 2**25 + 1, 2**40 + 1])
def test_the_rank_of_a_quantile_is_exact_however_many_values_there_are(times):
    """As many as in single precision two ranks would be one."""
    for rank, expected in ((times, 1.0), (times + 1, 2.0), (2 * times, 2.0)):
        found = quantile(torch.tensor([1.0, 2.0]), rank / (2 * times))
        with pytest.raises(StopIteration) as end:
            counts = next(found)
            while True:
                counts = found.send(counts * times)
        assert end.value.value == expected


def test_what_is_measured_is_free_while_numbers_are_exchanged():
    """All weights are measured in turns, and each would hold as much as its weight."""
    shared = Clock(0, 1, whole=object())
    for begin in (lambda tensor: measure_by_norms(tensor, torch.ones(4), shared), lambda tensor: quantile(tensor, 0.5)):
        tensor = torch.rand(4)
        measurement, place = begin(tensor), weakref.ref(tensor)
        del tensor
        next(measurement)
        assert place() is None


def test_a_quantile_takes_four_exchanges_of_a_few_counts():
    counts = []
    exchanged = quantile(torch.rand(9), 0.5)
    with contextlib.suppress(StopIteration):
        counts.append(next(exchanged))
        while True:
            counts.append(exchanged.send(counts[-1]))
    assert [len(count) for count in counts] == [256] * 4


@pytest.mark.parametrize("at", [5, MEASURED_STEPS - 1, MEASURED_STEPS, MEASURED_STEPS + 3])
def test_a_training_resumed_while_rho_is_measured_or_after_it_is_the_unbroken_one(at):
    config = NxMConfig("admm", settings={"rho": "quantile", "rho_schedule": "linear", "steps": 4, "dual": 0.5})
    steps = MEASURED_STEPS + 8
    whole, engine = trained(config, steps)
    model = Toy()
    stepper = adamw(model)
    broken = attach(model, stepper, config, total_steps=steps)
    for _ in train(model, stepper, 0, at):
        pass
    again, stepper, resumed = load_run(save_run(model, stepper, broken), config, total=steps)
    for _ in train(again, stepper, at, steps):
        pass
    assert same(all_tensors(whole, engine), all_tensors(again, resumed))
    assert all(float(value) > 0 for name, value in resumed.tensors().items() if name.endswith("/rho"))
