"""Two ways to measure rho, the strength of ADMM's penalty, from the gradients of a weight."""

import math

import torch
from torch import Tensor

from nxm_hf.methods.base import Slot, State
from nxm_hf.methods.schedules import Clock
from nxm_hf.methods.scores import nearest_mask, scored
from nxm_hf.patterns import NM, Block, Pattern, Transposable

PULL_OVER_GRADIENT = 0.003  # the ratio of norms that `measure_by_norms` aims at
MEASURED_STEPS = 20  # the gradients that `measure_by_quantile` averages
QUANTILE = 0.9  # the share of groups that shall have a fixed point
_INFINITY = 0x7F800000  # the bits of an infinite float32; those of positive numbers are in the order of the numbers


def measure_by_norms(pull: Tensor, grad: Tensor, clock: Clock) -> Tensor:
    """Return the rho for which the pull is `PULL_OVER_GRADIENT` times as large as the gradient.

    Args:
        pull: W - Z + U.
        grad: The gradient of the loss.
        clock: The clock of the weight.

    Returns:
        rho as a double on the CPU; 0 without a pull or a gradient.
    """
    pull_norm, grad_norm = clock.norms(pull, grad)
    grad_norm = grad_norm / clock.loss_scale
    if pull_norm > 0 and grad_norm > 0:
        return (PULL_OVER_GRADIENT * grad_norm / pull_norm).cpu()
    return torch.zeros((), dtype=torch.float64)


def measure_by_quantile(weight: Tensor, state: State, pattern: Pattern, scores: str, clock: Clock) -> Tensor:
    """Add a gradient to the mean in the state; once there are `MEASURED_STEPS`, return the rho that they call for.

    A weight can only come to rest if rho is at least max |G pruned| / min |W kept| in each group, with the mean
    gradient G. Below it the dual variable of a pruned weight outgrows a kept weight, and masks never rest. rho is the
    `QUANTILE` of that ratio over the groups of N:M. A pattern without groups has one smallest kept weight, and the
    quantile is that of |G pruned|; blocks count as entries, by their norms.

    Args:
        weight: The weight, with its gradient.
        state: The state of ADMM for this weight. The mean is dropped once rho is measured.
        pattern: The pattern of the weight.
        scores: The metric of the projections, which weighs G and W.
        clock: The clock of the weight.

    Returns:
        rho as a double on the CPU; 0 until it is measured.
    """
    grad = weight.grad
    unknown = torch.zeros((), dtype=torch.float64)
    if grad is None:
        return unknown
    count = state.get(Slot.GRADIENTS, torch.tensor(0)) + 1
    mean = state[Slot.GRADIENT] if Slot.GRADIENT in state else torch.zeros_like(grad)
    mean.add_(grad.detach() / clock.loss_scale - mean, alpha=1 / int(count))
    state[Slot.GRADIENT], state[Slot.GRADIENTS] = mean, count
    if int(count) < MEASURED_STEPS:
        return unknown
    mask = nearest_mask(weight, pattern, scores, clock)
    rho = quantile(_ratios(scored(mean, scores, clock), scored(weight, scores, clock), mask, pattern), QUANTILE, clock)
    if not 0 < rho < math.inf:
        return unknown
    del state[Slot.GRADIENT], state[Slot.GRADIENTS]
    return torch.tensor(rho, dtype=torch.float64)


def _ratios(grad: Tensor, weight: Tensor, mask: Tensor, pattern: Pattern) -> Tensor:
    """Return |G pruned| over the smallest |W kept|: the largest of each group, or of each pruned entry or block."""
    if isinstance(pattern, NM | Transposable):
        grad, weight, mask = (x.reshape(-1, pattern.m) for x in (grad, weight, mask))
        largest, smallest = (grad * ~mask).amax(-1), weight.masked_fill(~mask, torch.inf).amin(-1)
        held = smallest > 0  # a group of zeros is at rest at any rho
        return largest[held] / smallest[held]
    if isinstance(pattern, Block):
        grad, weight = (pattern.tiles(x).square().sum((-1, -3)).sqrt() for x in (grad, weight))
        mask = pattern.tiles(mask).any(-1).any(-2)
    return grad[~mask] / weight[mask].amin() if bool(mask.any()) else grad[mask]


def quantile(values: Tensor, share: float, clock: Clock) -> float:
    """Return the smallest of the values, in single precision, that at least a share of them does not exceed.

    Args:
        values: Numbers of at least 0, or this process's part of them.
        share: The share, above 0 and at most 1.
        clock: The clock of the weight that the values belong to.

    Returns:
        The value; 0 if there are none.
    """

    def count(kept: Tensor) -> float:
        number = kept.sum(dtype=torch.float64).reshape(1)
        return (number if clock.whole is None else clock.whole.total(number)).item()

    bits = values.float().contiguous().view(torch.int32)
    wanted = share * count(bits >= 0)
    low, high = 0, _INFINITY
    while low < high:  # the same number of rounds in every process
        middle = (low + high) // 2
        low, high = (low, middle) if count(bits <= middle) >= wanted else (middle + 1, high)
    return torch.tensor(low, dtype=torch.int32).view(torch.float32).item()
