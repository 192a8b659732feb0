"""Two ways to measure rho, the strength of ADMM's penalty, from the gradients of a weight.

Both are generators. Of a weight in parts, they yield the numbers of this process and are sent those of all processes
added up, as `Method.measure` says.
"""

import math
from collections.abc import Generator

import torch
from torch import Tensor

from nxm_hf.methods.base import Slot, State
from nxm_hf.methods.schedules import Clock
from nxm_hf.methods.scores import nearest_mask, scored
from nxm_hf.patterns import NM, Block, Pattern, Transposable

PULL_OVER_GRADIENT = 0.003  # the ratio of norms that `measure_by_norms` aims at
MEASURED_STEPS = 20  # the gradients that `measure_by_quantile` averages
QUANTILE = 0.9  # the share of groups that shall have a fixed point
_DIGIT = 8  # bits of a value that one exchange decides: four exchanges of 256 counts decide all 32 of a float32


def measure_by_norms(pull: Tensor, grad: Tensor, clock: Clock) -> Generator[Tensor, Tensor, Tensor]:
    """Return the rho for which the pull is `PULL_OVER_GRADIENT` times as large as the gradient.

    Args:
        pull: W - Z + U.
        grad: The gradient of the loss.
        clock: The clock of the weight.

    Returns:
        rho as a double on the CPU; 0 without a pull or a gradient.
    """
    if clock.whole is None:
        pull_norm, grad_norm = pull.norm(), grad.norm().double()
    else:
        squares = torch.stack([tensor.square().sum(dtype=torch.float64) for tensor in (pull, grad)])
        del pull  # all weights are measured in turns, and each would hold its own
        pull_norm, grad_norm = (yield squares).sqrt()
    grad_norm = grad_norm / clock.loss_scale
    if pull_norm > 0 and grad_norm > 0:
        return (PULL_OVER_GRADIENT * grad_norm / pull_norm).cpu()
    return torch.zeros((), dtype=torch.float64)


def measure_by_quantile(
    weight: Tensor, state: State, pattern: Pattern, scores: str, clock: Clock
) -> Generator[Tensor, Tensor, Tensor]:
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
    mean.add_(grad / clock.loss_scale - mean, alpha=1 / int(count))
    state[Slot.GRADIENT], state[Slot.GRADIENTS] = mean, count
    if int(count) < MEASURED_STEPS:
        return unknown
    rho = yield from quantile(
        _ratios(
            scored(mean, scores, clock),
            scored(weight, scores, clock),
            nearest_mask(weight, pattern, scores, clock),
            pattern,
        ),
        QUANTILE,
    )
    if not 0 < rho < math.inf:
        return unknown
    del state[Slot.GRADIENT], state[Slot.GRADIENTS]
    return torch.tensor(rho, dtype=torch.float64)


def _ratios(grad: Tensor, weight: Tensor, mask: Tensor, pattern: Pattern) -> Tensor:
    """Return |G pruned| over the smallest |W kept|: the largest of each group, or of each pruned entry or block."""
    if isinstance(pattern, NM | Transposable):
        grad, weight, mask = (x.reshape(-1, pattern.m) for x in (grad, weight, mask))
        largest, smallest = (grad * ~mask).amax(1), weight.masked_fill(~mask, torch.inf).amin(1)
        held = smallest > 0  # a group of zeros is at rest at any rho
        return largest[held] / smallest[held]
    if isinstance(pattern, Block):
        grad, weight = (pattern.tiles(x).square().sum((-1, -3)).sqrt() for x in (grad, weight))
        mask = pattern.tiles(mask).any(-1).any(-2)
    return grad[~mask] / weight[mask].amin() if bool(mask.any()) else grad[mask]


def quantile(values: Tensor, share: float) -> Generator[Tensor, Tensor, float]:
    """Return the smallest of the values, in single precision, that at least a share of them does not exceed.

    The bits of positive numbers are in the order of the numbers. Each exchange counts the next `_DIGIT` bits of the
    values that are still undecided. One exchange would have to be of all 2^31 values that there may be.

    Args:
        values: Numbers of at least 0, or this process's part of them. NaN counts as infinite.
        share: The share, above 0 and at most 1.

    Yields:
        Counts of this process.

    Returns:
        The value; 0 if there are none.
    """
    undecided = values.float().nan_to_num(torch.inf, torch.inf).view(torch.int32)
    del values
    found, wanted = 0, None
    below: Tensor | float = 0.0
    for place in reversed(range(0, 32, _DIGIT)):
        digits = undecided >> place & 2**_DIGIT - 1
        counts = (yield torch.bincount(digits, minlength=2**_DIGIT)).cpu().double()  # exact up to 2^53 values
        wanted = share * counts.sum() if wanted is None else wanted
        digit = int((below + counts.cumsum(0) >= wanted).nonzero()[0])
        found, below = found | digit << place, below + counts[:digit].sum()
        undecided = undecided[digits == digit]
    return torch.tensor(found, dtype=torch.int32).view(torch.float32).item()
