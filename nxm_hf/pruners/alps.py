"""ALPS: find mask and weights together by ADMM, then fit the weights to the mask."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nxm_hf.patterns import NM, Pattern, Transposable
from nxm_hf.pruners.base import Inputs, OneShot, PrunedWeight, apply_mask
from nxm_hf.pruners.hessian import BIAS_MODES, Hessian, correct_bias
from nxm_hf.pruners.least_squares import least_squares
from nxm_hf.pruners.sparsegpt import obs_sweep
from nxm_hf.settings import at_least_one, at_least_zero, one_of
from nxm_hf.solvers import weight_ops

RHO_GROWTH = ((0.1, 1.1), (0.0, 1.07))  # (share of the mask that an iteration changed, factor of rho above it)
SETTLED = 0.003  # share of the mask; the search ends when an iteration changes less
RESTART = 0.2  # factor of rho as long as the mask has hardly changed: the first rho was too large


@dataclass(frozen=True)
class ALPS(OneShot):
    """Find mask and weights together by ADMM, with the error of the layer's outputs as the objective.

        V = W + rho (H + rho I)^-1 (Z - U - W),   Z = P(V + U),   U = U + V - Z,   on inputs scaled to norm 1

    Reference: Meng et al., 2024, https://arxiv.org/abs/2406.07831
    Relations: starts from the weights of `sparsegpt`; with a fixed mask it would be `adaprune`.

    A row with less error by `sparsegpt` than by ADMM keeps the mask of `sparsegpt`. Rows that the pattern couples are
    chosen together. At the end the mask gets its best weights by least squares. Weights of dead inputs are pruned
    first, and those that are kept stay as they are.

    Args:
        damping: The value added to the diagonal of H, as a share of its mean.
        bias: "after", "joint" or "keep"; see `SparseGPT`.
        rho: The penalty at the start.
        steps: The largest number of iterations of ADMM.
        tolerance: The share of the least error at which the fit stops above it.
    """

    damping: float = 0.1
    bias: str = "after"
    rho: float = 0.15
    steps: int = 300
    tolerance: float = 3e-3

    def __post_init__(self) -> None:
        at_least_zero("alps", "damping", self.damping, example=0.01)
        at_least_zero("alps", "rho", self.rho, example=0.01)
        at_least_zero("alps", "tolerance", self.tolerance, example=0.01)
        if not self.rho:
            raise ValueError("rho of alps must be above 0; got 0, which couples nothing. Write rho=0.1.")
        at_least_one("alps", "steps", self.steps, example=300)
        one_of("alps", "bias", self.bias, BIAS_MODES)

    def prune(self, weight: Tensor, bias: Tensor | None, inputs: Inputs, pattern: Pattern) -> PrunedWeight:
        hessian = Hessian.for_bias_mode(inputs, self.damping, bias, self.bias)
        live = torch.where(hessian.dead, 0, weight)  # to prune the weight of a dead input costs nothing
        swept = obs_sweep(live, hessian, pattern)
        found = admm_search(live, hessian, pattern, swept, self.rho, self.steps)
        mask, start = _better(live, swept, found, hessian, pattern)
        fitted = least_squares(live, mask, start, hessian, self.tolerance)
        fitted = torch.where(hessian.dead, weight, fitted)
        return correct_bias(apply_mask(fitted, mask), weight, bias, inputs, self.bias)


def _better(
    weight: Tensor, one: PrunedWeight, other: PrunedWeight, hessian: Hessian, pattern: Pattern
) -> tuple[Tensor, Tensor]:
    """Return the mask and the weight of less cost, chosen for each band of rows that the pattern couples."""
    band = 1 if isinstance(pattern, NM) else pattern.m if isinstance(pattern, Transposable) else len(weight)
    costs = [hessian.cost(weight - pruned.weight).unflatten(0, (-1, band)).sum(1) for pruned in (one, other)]
    first = (costs[0] < costs[1]).repeat_interleave(band).unsqueeze(1)  # [out, 1]
    return torch.where(first, one.mask, other.mask), torch.where(first, one.weight, other.weight)


def admm_search(
    weight: Tensor, hessian: Hessian, pattern: Pattern, start: PrunedWeight, rho: float, steps: int
) -> PrunedWeight:
    """Run ADMM until the mask hardly changes. The more of the mask changes, the faster rho grows.

    Args:
        weight: The dense weight, [out, in].
        hessian: The Hessian of the output error.
        pattern: Where zeros may stand.
        start: The Z to start from, and its mask.
        rho: The penalty at the start.
        steps: The largest number of iterations.

    Returns:
        The sparse iterate Z and its mask.
    """
    values, vectors, scale = hessian.scaled_eigen(weight.dtype)
    dense, sparse, mask = weight * scale, start.weight * scale, start.mask
    kept, has_moved = int(mask.sum()), False
    shifted = dense.clone()  # W + U
    for _ in range(steps):
        # V - W = rho (H + rho I)^-1 (Z - U - W), in the eigenbasis of H, where H + rho I is diagonal
        rotated = (sparse - shifted) @ vectors
        rotated *= rho / (values + rho)
        fitted = (rotated @ vectors.T).add_(shifted)  # V + U
        last_mask, mask = mask, pattern.nearest(fitted)
        sparse = weight_ops.kept(fitted, mask, sparse)
        changed = int(torch.count_nonzero(mask ^ last_mask)) / (2 * kept)
        if has_moved and changed < SETTLED:
            break
        has_moved = has_moved or changed >= SETTLED
        factor = next(growth for share, growth in RHO_GROWTH if changed > share) if has_moved else RESTART
        rho *= factor
        shifted = torch.add(dense, fitted.sub_(sparse), alpha=1 / factor)  # U is scaled by rho: it shrinks as rho grows
    return apply_mask(sparse / scale, mask)
