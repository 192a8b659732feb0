"""Entropy-regularised optimal transport, rounded: TSENOR."""

from math import log

import torch
from torch import Tensor

from nxm_hf.solvers.published.filling import filled
from nxm_hf.solvers.published.greedy import keep_while_room
from nxm_hf.solvers.published.tilewise import tilewise

SHARPNESS = 50.0  # the weight of the scores, the largest of a tile being 1, against the entropy
ROUNDS = 100


@tilewise(2)
def by_transport(q: Tensor, n: int) -> Tensor:
    """Spread n over every row and column, at most 1 on each entry, by score and entropy; then round.

    Reference: TSENOR, 2025, https://arxiv.org/abs/2505.23949. Dykstra's projections, in logarithms: rows scaled to n,
    columns scaled to n, entries capped at 1, in turns. Rounding keeps the largest while there is room, and fills
    short rows and columns by inserting and trading. The sharpness and the number of rounds are ours, not the authors'.
    Exactly n in every row and column. The mask is near the optimum, but need not be optimal.

    Args:
        q: Integer scores, (tiles, m, m).
        n: Kept entries of each row and column.
    """
    return filled(q, keep_while_room(_plan(q, n), n), n)


def _plan(q: Tensor, n: int) -> Tensor:
    """Return the logarithm of the kept share of each entry."""
    peak = q.abs().amax((1, 2), keepdim=True).clamp(min=1)
    plan = (q.double() / peak * SHARPNESS).float()
    correction = torch.zeros_like(plan)
    for _ in range(ROUNDS):
        plan = plan + (log(n) - plan.logsumexp(2, keepdim=True))
        plan = plan + (log(n) - plan.logsumexp(1, keepdim=True))
        plan, correction = (plan + correction).clamp(max=0), (plan + correction).clamp(min=0)
    return plan
