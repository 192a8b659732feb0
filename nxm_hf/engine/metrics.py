"""What is logged beside the loss: density, how much masks move, and how far the weights are from sparse."""

from collections.abc import Iterable, Mapping
from math import isnan

from torch import Tensor

from nxm_hf.layers.plan import Target
from nxm_hf.methods import NO_CHANGE, PHASES, State, pruned_part


def residual(weights: Iterable[tuple[Target, Tensor]]) -> float:
    """The norm of W - P(W) over the norm of W, for all targets together: 0 when sparse."""
    pruned = whole = 0.0
    for target, weight in weights:
        whole += weight.square().sum().item()
        if isnan(whole):  # a log is no place to fail in; the next mask refuses NaN and says where it is
            return whole
        mask = target.pattern.largest(weight)
        pruned += pruned_part(weight, mask).square().sum().item()
    return (pruned / whole) ** 0.5 if whole else 0.0


def movement(targets: Iterable[Target], states: Mapping[str, State]) -> dict[str, float]:
    """Flip rate and similarity of masks, between the last two times they were solved."""
    came = left = before = entries = 0
    for target in targets:
        moved = states[target.name].get("moved", NO_CHANGE)
        came, left, before = (have + int(more) for have, more in zip((came, left, before), moved, strict=True))
        entries += target.numel
    return {"nxm/mask_similarity": 1 - left / max(before, 1), "nxm/flip_rate": (came + left) / entries}


def training_metrics(
    targets: tuple[Target, ...], states: Mapping[str, State], dense: Iterable[tuple[Target, Tensor]], phase: str
) -> dict[str, float]:
    """The record of one logging step. The density is that of the weights that would be shipped."""
    entries, kept = sum(target.numel for target in targets), sum(target.kept for target in targets)
    return {
        "nxm/density": kept / entries,
        **movement(targets, states),
        "nxm/residual": residual(dense),
        "nxm/phase": PHASES.index(phase),
    }
