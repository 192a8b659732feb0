"""Metrics that are logged beside the loss: density, movement of masks, and distance of the weights from sparse."""

from collections.abc import Iterable, Mapping
from math import isnan

import torch
from torch import Tensor

from nxm_hf.layers.plan import Target
from nxm_hf.methods import NO_CHANGE, PHASES, Slot, State, pruned_part
from nxm_hf.methods.admm import sparse_weight


def residual(weights: Iterable[tuple[Target, Tensor]]) -> float:
    """Return the norm of W - P(W) over the norm of W, over all targets together.

    Args:
        weights: Each target with its weight W; P(W) is the nearest weight that holds the pattern.

    Returns:
        0 if the weights are sparse, and at most 1; NaN if a weight holds NaN.
    """
    weights = tuple(weights)
    return _residual(*_sums_of_all(weights, _residual_sums(weights)))


def _residual_sums(weights: Iterable[tuple[Target, Tensor]]) -> list[float]:
    """Return the sums of squares of W - P(W) and of W."""
    weights = tuple(weights)
    total = sum(weight.square().sum().item() for _, weight in weights)
    if _is_nan_in_any([target for target, _ in weights], total):
        return [float("nan"), float("nan")]
    masks = ((weight, target.pattern_here.nearest(weight)) for target, weight in weights)
    return [sum(pruned_part(weight, mask).square().sum().item() for weight, mask in masks), total]


def _is_nan_in_any(targets: Iterable[Target], number: float) -> bool:
    """Return True if a number is NaN, in whichever process where all of them solve masks together.

    Logging does not fail then: the next mask update raises on NaN and names the layer.
    """
    shared = next((target.shards for target in targets if target.pattern_here is not target.pattern), None)
    return isnan(number if shared is None else shared.total(torch.tensor(number)).item())


def _residual(pruned: float, total: float) -> float:
    return (pruned / total) ** 0.5 if total else 0.0


def _admm_sums(weights: Iterable[tuple[Target, Tensor]], states: Mapping[str, State]) -> list[float]:
    """Return the sums of squares of W - Z and of W, over the layers in ADMM, where Z is that of the last iteration."""
    held = [(target, w, states[target.name]) for target, w in weights if Slot.R in states[target.name]]
    total = sum(weight.square().sum().item() for _, weight, _ in held)
    broken = any(state[Slot.R].sum().isnan() for _, _, state in held)
    if _is_nan_in_any([target for target, _, _ in held], float("nan") if broken else total):
        return [float("nan"), float("nan")]
    z = ((weight, sparse_weight(target.pattern_here, state)) for target, weight, state in held)
    return [sum((weight - kept).square().sum().item() for weight, kept in z), total]


def _admm_progress(states: Mapping[str, State], apart: float, total: float) -> dict[str, float]:
    """Return `nxm/iterations`, and `nxm/disagreement`, the norm of W - Z over that of W; empty without ADMM."""
    iterations = max((int(state[Slot.UPDATES]) for state in states.values() if Slot.R in state), default=0)
    return {"nxm/iterations": iterations, "nxm/disagreement": (apart / total) ** 0.5} if total else {}


def mask_movement(targets: Iterable[Target], states: Mapping[str, State]) -> dict[str, float]:
    """Return the similarity and the flip rate of masks between their last two updates.

    Args:
        targets: The pruned layers.
        states: The state of each layer's method, by name.

    Returns:
        `nxm/mask_similarity` and `nxm/flip_rate`.
    """
    targets = tuple(targets)
    return _movement(targets, *_sums_of_all(((target, None) for target in targets), _movement_sums(targets, states)))


def _movement_sums(targets: Iterable[Target], states: Mapping[str, State]) -> list[float]:
    """Return how many entries came into the masks, how many left, and how many were kept before."""
    added = removed = before = 0
    for target in targets:
        change = states[target.name].get(Slot.MASK_CHANGE, NO_CHANGE).tolist()
        added, removed, before = added + change[0], removed + change[1], before + change[2]
    return [added, removed, before]


def _movement(targets: Iterable[Target], added: float, removed: float, before: float) -> dict[str, float]:
    entries = sum(target.numel for target in targets)
    return {"nxm/mask_similarity": 1 - removed / max(before, 1), "nxm/flip_rate": (added + removed) / entries}


def training_metrics(
    targets: tuple[Target, ...], states: Mapping[str, State], trained: Iterable[tuple[Target, Tensor]], phase: str
) -> dict[str, float]:
    """Return the metrics of one logging step.

    Args:
        targets: The pruned layers.
        states: The state of each layer's method, by name.
        trained: Each target with the weight that the optimizer trains.
        phase: The current phase.

    Returns:
        The metrics by name. The density is that of the deployed weights.
    """
    trained = tuple(trained)
    sums = [*_residual_sums(trained), *_admm_sums(trained, states), *_movement_sums(targets, states)]
    sums = _sums_of_all(trained, sums)  # together, as every exchange between processes takes time
    entries, kept = sum(target.numel for target in targets), sum(target.kept for target in targets)
    return {
        "nxm/density": kept / entries,
        **_movement(targets, *sums[4:]),
        "nxm/residual": _residual(*sums[:2]),
        **_admm_progress(states, *sums[2:4]),
        "nxm/phase": PHASES.index(phase),
    }


def _sums_of_all(weights: Iterable[tuple[Target, object]], sums: list[float]) -> list[float]:
    """Return the sums over all processes that share the weights."""
    shards = next((target.shards for target, _ in weights), None)
    return sums if shards is None else shards.total(torch.tensor(sums, dtype=torch.float64)).tolist()
