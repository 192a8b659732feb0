"""ADMM on a convex loss with exact steps: an ADMM in NumPy converges as theory says, and ours is that ADMM."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch

from nxm_hf.methods import ADMM
from nxm_hf.methods.admm import sparse_weight
from nxm_hf.methods.rho import QUANTILE
from nxm_hf.methods.schedules import Clock, Constant, Every, Growth
from nxm_hf.patterns import NM
from tests.support.scores import Remembered

ROWS, WIDTH, UPDATES = 48, 32, 80
STRENGTHS = (0.001, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0)
PROBLEMS = (0, 1, 2)


@cache
def problem(seed, spread=0.5):
    """Return the target T and the curvature H of the loss tr((W - T) H (W - T)'), of correlated inputs."""
    rng = np.random.default_rng(seed)
    mix = 0.5 * np.eye(WIDTH) + rng.standard_normal((WIDTH, WIDTH)) / np.sqrt(WIDTH)
    inputs = rng.standard_normal((4 * WIDTH, WIDTH)) @ mix * np.exp(spread * rng.standard_normal(WIDTH))
    curvature = inputs.T @ inputs / len(inputs)
    return rng.standard_normal((ROWS, WIDTH)), curvature / np.trace(curvature) * WIDTH


def mask_of(v, metric):
    """Return the mask of the two largest of each four, by v^2 times the metric."""
    scores = (v * v * metric).reshape(-1, 4)
    order = np.argsort(-scores, axis=1, kind="stable")
    mask = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(mask, order[:, :2], True, axis=1)
    return mask.reshape(v.shape)


def loss(w, target, curvature):
    """Return the loss of W over that of 0."""
    return np.sum((w - target) @ curvature * (w - target)) / np.sum(target @ curvature * target)


def exact_step(target, curvature, rho, r):
    """Return the W that minimises half the loss plus rho / 2 |W - R|^2."""
    return np.linalg.solve(curvature + rho * np.eye(WIDTH), (target @ curvature + rho * r).T).T


def textbook(target, curvature, strengths, metric=1.0, dual=1.0):
    """Run ADMM with three arrays, one strength for each update. Yields W, Z and U * rho after each."""
    z, u = target * mask_of(target, metric), np.zeros_like(target)
    before = strengths[0]
    for rho in strengths:
        u, before = u * before / rho, rho
        w = exact_step(target, curvature, rho, z - u)
        z = (w + u) * mask_of(w + u, metric)
        u = u + dual * (w - z)
        yield w, z, rho * u


def outcome(seed, strengths, spread=0.5, fisher=False):
    """Return the loss of the pruned W, the mean similarity of masks, that of the last two, and |W - Z| / |W|."""
    target, curvature = problem(seed, spread)
    metric = np.diag(curvature) if fisher else 1.0
    steps = list(textbook(target, curvature, strengths, metric))
    masks = [z != 0 for _, z, _ in steps]
    similarity = [np.sum(one & other) / np.sum(one) for one, other in pairwise(masks)]
    w, z, _ = steps[-1]
    shipped = loss(w * mask_of(w, metric), target, curvature)
    return np.array([shipped, np.mean(similarity), similarity[-1], np.linalg.norm(w - z) / np.linalg.norm(w)])


def over_problems(strengths, **kwargs):
    return np.mean([outcome(seed, strengths, **kwargs) for seed in PROBLEMS], axis=0)


@cache
def constant(rho):
    return over_problems([rho] * UPDATES)


def growing(begin=0.01, ratio=1.1):
    return [begin * ratio**k for k in range(UPDATES)]


def threshold(seed, share):
    """Return the rho that a share of groups needs for a fixed point, from the gradient at the pruned target."""
    target, curvature = problem(seed)
    mask = mask_of(target, 1.0)
    gradient = np.abs((target * mask - target) @ curvature)
    largest = np.where(mask, 0, gradient).reshape(-1, 4).max(axis=1)
    smallest = np.where(mask, np.abs(target), np.inf).reshape(-1, 4).min(axis=1)
    return np.quantile(largest / smallest, share)


def test_the_loss_is_least_where_the_strength_lets_nine_groups_of_ten_rest():
    losses = {rho: constant(rho)[0] for rho in STRENGTHS}
    best = min(losses, key=losses.get)
    limit = np.mean([threshold(seed, QUANTILE) for seed in PROBLEMS])
    assert limit / 3 < best < 3 * limit
    values = list(losses.values())
    lowest = values.index(losses[best])
    assert values[: lowest + 1] == sorted(values[: lowest + 1], reverse=True) and values[lowest:] == sorted(
        values[lowest:]
    )
    assert constant(best)[1] >= 0.98, "the mean similarity there"


def test_masks_flip_for_ever_below_the_threshold_and_rest_above_it():
    similarity = [constant(rho)[1] for rho in STRENGTHS]
    assert similarity[0] < 0.6 and similarity[-1] > 0.99 and all(np.diff(similarity) > -1e-3)
    assert constant(0.001)[3] > 0.5 and constant(10.0)[3] < 0.01


def test_a_growing_strength_beats_every_constant_one_and_leaves_nothing_to_prune():
    shipped, _, last, residual = over_problems(growing())
    assert shipped < 0.9 * min(constant(rho)[0] for rho in STRENGTHS)
    assert last == 1 and residual < 1e-3


def test_projections_in_the_metric_of_the_curvature_are_better_where_curvatures_differ():
    fisher, magnitude = (over_problems(growing(), spread=1.0, fisher=metric)[0] for metric in (True, False))
    assert fisher < 0.95 * magnitude


def library(target, curvature, method, rho):
    """Run our updates, with exact steps for W at the strength in use. Yields W, Z and U * rho after each."""
    squares = torch.from_numpy(np.tile(np.diag(curvature), (ROWS, 1)))
    weight = torch.from_numpy(target.copy())
    clocks = [Clock(step, UPDATES, moments=Remembered(squares)) for step in range(UPDATES + 1)]
    state = method.init(weight, clocks[0])
    for step in range(1, UPDATES + 1):
        strength = rho * float(state.get("growth", 1.0))
        weight.copy_(torch.from_numpy(exact_step(target, curvature, strength, state["r"].numpy())))
        method.after_step(weight, state, clocks[step])
        z = sparse_weight(method.pattern, state)
        after = rho * float(state.get("growth", 1.0))
        yield weight.numpy().copy(), z.numpy(), after * (z - state["r"]).numpy()


@pytest.mark.parametrize("projection", ["magnitude", "fisher"])
@pytest.mark.parametrize("dual", [1.0, 0.4, 0.0])
@pytest.mark.parametrize(("rho", "growth"), [(0.3, Constant(1.0)), (20.0, Growth("geometric", 1e-3))], ids=str)
def test_our_admm_with_exact_steps_is_the_textbook_admm(rho, growth, dual, projection):
    target, curvature = problem(0, 1.0)
    method = ADMM(NM(2, 4), rho, update=Every(1), start="B", dual=dual, projection=projection, growth=growth)
    strengths = [rho * growth(Clock(k, UPDATES)) for k in range(UPDATES)]
    metric = np.diag(curvature) if projection == "fisher" else 1.0
    runs = textbook(target, curvature, strengths, metric, dual), library(target, curvature, method, rho)
    flips, before = 0, None
    for expected, ours in zip(*runs, strict=True):
        for one, other in zip(expected, ours, strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-7, atol=1e-9)
        flips += 0 if before is None else int(np.sum(before != (ours[1] != 0)))
        before = ours[1] != 0
    assert flips > 20, "the agreement would mean little if no mask moved"
