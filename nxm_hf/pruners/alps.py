"""ALPS: find mask and weights together by ADMM, then fit the weights to the mask."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nxm_hf.patterns import NM, Pattern, Transposable
from nxm_hf.pruners.base import Inputs, OneShot, PrunedWeight, apply_mask
from nxm_hf.pruners.hessian import BIAS_MODES, Hessian, correct_bias
from nxm_hf.pruners.least_squares import least_squares
from nxm_hf.pruners.magnitude import Magnitude
from nxm_hf.pruners.sparsegpt import obs_sweep
from nxm_hf.pruners.wanda import Wanda
from nxm_hf.settings import at_least_one, at_least_zero, one_of

CHECK_EVERY = 3  # iterations between two comparisons of the mask
RHO_GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))  # (share of the mask that changed, factor of rho above it)
ROUGH = 0.1  # share of the least error at which the fit of a candidate stops, before one of them is chosen
RESTART = 0.2  # factor of rho while the mask has never changed: the first rho was too large


@dataclass(frozen=True)
class ALPS(OneShot):
    """Find mask and weights together by ADMM, with the error of the layer's outputs as the objective.

        V = (H + rho I)^-1 (H W + rho (Z - U)),   Z = P(V + U),   U = U + V - Z,   on inputs scaled to norm 1

    Reference: Meng et al., 2024, https://arxiv.org/abs/2406.07831
    Relations: starts from the mask of `wanda`; with a fixed mask it would be `adaprune`.

    There are four candidate masks: the mask of ADMM and those of `magnitude`, `wanda` and `sparsegpt`. Each gets its
    best weights by least squares, and the candidate with the least error wins. The choice is made row by row if the
    pattern does not couple rows.

    Args:
        damping: The value added to the diagonal of H, as a share of its mean.
        bias: "after", "joint" or "keep"; see `SparseGPT`.
        rho: The penalty at the start.
        steps: The largest number of iterations of ADMM.
        tolerance: The share of the least error at which each fit stops above it.
    """

    damping: float = 0.1
    bias: str = "after"
    rho: float = 0.1
    steps: int = 300
    tolerance: float = 1e-4

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
        candidates = [
            Magnitude().prune(weight, None, inputs, pattern),
            Wanda().prune(weight, None, inputs, pattern),
            obs_sweep(weight, hessian, pattern),
            admm_search(weight, hessian, pattern, self.rho, self.steps),
        ]
        best = self._best(weight, candidates, hessian, pattern)
        return correct_bias(best, weight, bias, inputs, self.bias)

    def _best(
        self, weight: Tensor, candidates: Sequence[PrunedWeight], hessian: Hessian, pattern: Pattern
    ) -> PrunedWeight:
        """Return the candidate of least cost, chosen for each band of rows that the pattern couples.

        All candidates are fitted roughly before. The chosen rows then go on from there to the tolerance, together.
        """
        band = 1 if isinstance(pattern, NM) else pattern.m if isinstance(pattern, Transposable) else len(weight)
        rough = max(ROUGH, self.tolerance)
        fitted = [least_squares(weight, c.mask, c.weight, hessian, rough) for c in candidates]
        costs = [hessian.cost(weight - one).unflatten(0, (-1, band)).sum(1) for one in fitted]
        best = torch.stack(costs).argmin(0).repeat_interleave(band)  # [out]: the index of the candidate
        rows = torch.arange(len(weight), device=weight.device)
        mask = torch.stack([c.mask for c in candidates])[best, rows]
        start = torch.stack(fitted)[best, rows]
        return apply_mask(least_squares(weight, mask, start, hessian, self.tolerance), mask)


def admm_search(weight: Tensor, hessian: Hessian, pattern: Pattern, rho: float, steps: int) -> PrunedWeight:
    """Run ADMM until the mask no longer changes. The more of the mask changes, the faster rho grows.

    Args:
        weight: The dense weight, [out, in].
        hessian: The Hessian of the output error.
        pattern: Where zeros may stand.
        rho: The penalty at the start.
        steps: The largest number of iterations.

    Returns:
        The sparse iterate Z and its mask.
    """
    values, vectors, scale = (tensor.to(weight.dtype) for tensor in hessian.scaled_eigen)
    dense = weight * scale
    target = (dense @ vectors) * values  # H W in the eigenbasis of H, where H + rho I is diagonal
    mask = last_mask = pattern.nearest(dense)
    sparse, dual = dense * mask, torch.zeros_like(dense)
    never_changed = True
    for step in range(1, steps + 1):
        fitted = ((target + rho * ((sparse - dual) @ vectors)) / (values + rho)) @ vectors.T
        dual += fitted
        mask = pattern.nearest(dual)
        sparse = dual * mask
        dual -= sparse
        if step % CHECK_EVERY:
            continue
        changed = int((mask ^ last_mask).sum()) / (2 * int(mask.sum()))
        last_mask = mask
        never_changed = never_changed and not changed
        if not changed and not never_changed:
            break
        factor = next((growth for share, growth in RHO_GROWTH if changed > share), RESTART)
        rho, dual = rho * factor, dual / factor  # the dual is scaled by rho, so it shrinks as rho grows
    return apply_mask(sparse / scale, mask)
