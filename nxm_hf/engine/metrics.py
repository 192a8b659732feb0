"""Metrics that are logged beside the loss: density, movement of masks, and distance of the weights from sparse."""

from collections.abc import Iterable, Mapping
from math import isnan

from torch import Tensor

from nxm_hf.layers.plan import Target
from nxm_hf.methods import NO_CHANGE, PHASES, Slot, State, pruned_part


def residual(weights: Iterable[tuple[Target, Tensor]]) -> float:
    """Return the norm of W - P(W) over the norm of W, over all targets together.

    Args:
        weights: Each target with its weight W; P(W) is the nearest weight that holds the pattern.

    Returns:
        0 if the weights are sparse, and at most 1; NaN if a weight holds NaN.
    """
    pruned = total = 0.0
    for target, weight in weights:
        total += weight.square().sum().item()
        if isnan(total):  # do not fail while logging: the next mask update raises on NaN and names the layer
            return total
        mask = target.pattern.nearest(weight)
        pruned += pruned_part(weight, mask).square().sum().item()
    return (pruned / total) ** 0.5 if total else 0.0


def admm_progress(weights: Iterable[tuple[Target, Tensor]], states: Mapping[str, State]) -> dict[str, float]:
    """Return how many iterations ADMM has done, and how far W is from the sparse Z of the last one.

    Args:
        weights: Each target with its weight W.
        states: The state of each layer's method, by name.

    Returns:
        `nxm/iterations`, and `nxm/disagreement`, the norm of W - Z over the norm of W. Empty if no layer is in ADMM.
    """
    apart = total = 0.0
    iterations = 0
    for target, weight in weights:
        state = states[target.name]
        if Slot.R not in state:
            continue
        r, iterations = state[Slot.R], max(iterations, int(state[Slot.UPDATES]))
        total += weight.square().sum().item()
        if isnan(total + r.sum().item()):
            return {"nxm/iterations": iterations, "nxm/disagreement": float("nan")}
        apart += (weight - r * target.pattern.nearest(r)).square().sum().item()
    return {"nxm/iterations": iterations, "nxm/disagreement": (apart / total) ** 0.5} if total else {}


def mask_movement(targets: Iterable[Target], states: Mapping[str, State]) -> dict[str, float]:
    """Return the similarity and the flip rate of masks between their last two updates.

    Args:
        targets: The pruned layers.
        states: The state of each layer's method, by name.

    Returns:
        `nxm/mask_similarity` and `nxm/flip_rate`.
    """
    added = removed = before = entries = 0
    for target in targets:
        change = states[target.name].get(Slot.MASK_CHANGE, NO_CHANGE).tolist()
        added, removed, before = added + change[0], removed + change[1], before + change[2]
        entries += target.numel
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
    entries, kept = sum(target.numel for target in targets), sum(target.kept for target in targets)
    return {
        "nxm/density": kept / entries,
        **mask_movement(targets, states),
        "nxm/residual": residual(trained),
        **admm_progress(trained, states),
        "nxm/phase": PHASES.index(phase),
    }
