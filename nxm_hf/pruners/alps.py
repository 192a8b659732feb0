"""ALPS: look for the mask and the weights together, by ADMM, then fit the weights to the mask."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nxm_hf.patterns import NM, Pattern, Transposable
from nxm_hf.pruners.base import Inputs, OneShot, Pruned, masked
from nxm_hf.pruners.hessian import BIASES, Curvature, curvature_of, with_bias
from nxm_hf.pruners.least_squares import refit
from nxm_hf.pruners.magnitude import Magnitude
from nxm_hf.pruners.sparsegpt import sweep
from nxm_hf.pruners.wanda import Wanda
from nxm_hf.settings import at_least_one, at_least_zero, one_of

EVERY = 3  # iterations between two looks at how much of the mask changed
PACE = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))  # where more than this share of the mask changed, rho grows by that


@dataclass(frozen=True)
class ALPS(OneShot):
    """Pull a dense weight and a sparse one together by ADMM, with the outputs of the layer as the objective.

        V = (H + rho I)^-1 (H W + rho (Z - U)),   Z = P(V + U),   U = U + V - Z,   on inputs scaled to norm 1

    Reference: Meng et al., 2024, https://arxiv.org/abs/2406.07831
    Relations: its first mask is that of `wanda`; with the mask fixed it would be `adaprune`. The mask that it finds,
    and those of `magnitude`, `wanda` and `sparsegpt`, each get the best weights for them; of these four the one with
    the least error is taken, row by row where the pattern lets rows choose for themselves. `bias` as in `sparsegpt`.
    """

    damping: float = 0.1
    bias: str = "after"
    rho: float = 0.1
    steps: int = 300
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("damping", "rho", "tolerance"):
            at_least_zero("alps", name, getattr(self, name), example=0.01)
        if not self.rho:
            raise ValueError("rho of alps must be above 0, or nothing is pulled together; got 0. Write rho=0.1.")
        at_least_one("alps", "steps", self.steps, example=300)
        one_of("alps", "bias", self.bias, BIASES)

    def prune(self, weight: Tensor, bias: Tensor | None, inputs: Inputs, pattern: Pattern) -> Pruned:
        curvature = curvature_of(self, bias, inputs)
        found = self._best(weight, self._candidates(weight, inputs, curvature, pattern), curvature, pattern)
        return with_bias(found, self, weight, bias, inputs)

    def _candidates(self, weight: Tensor, inputs: Inputs, curvature: Curvature, pattern: Pattern) -> list[Pruned]:
        return [
            Magnitude().prune(weight, None, inputs, pattern),
            Wanda().prune(weight, None, inputs, pattern),
            sweep(weight, curvature, pattern),
            alternate(weight, curvature, pattern, self.rho, self.steps),
        ]

    def _best(self, weight: Tensor, candidates: list[Pruned], curvature: Curvature, pattern: Pattern) -> Pruned:
        """The candidate that costs least once its weights are fitted to its mask; by rows where those are free."""
        rows = 1 if isinstance(pattern, NM) else pattern.m if isinstance(pattern, Transposable) else len(weight)
        fitted = [refit(weight, one.mask, one.weight, curvature, self.tolerance) for one in candidates]
        costs = [curvature.cost(weight - one).unflatten(0, (-1, rows)).sum(1) for one in fitted]
        best = torch.stack(costs).argmin(0).repeat_interleave(rows)  # [out]: which candidate
        pick = torch.arange(len(weight), device=weight.device)
        mask = torch.stack([one.mask for one in candidates])[best, pick]
        return masked(torch.stack(fitted)[best, pick], mask)


def alternate(weight: Tensor, curvature: Curvature, pattern: Pattern, rho: float, steps: int) -> Pruned:
    """ADMM until the mask stands still: rho grows the faster the more of the mask still changes."""
    scale = curvature.matrix.diagonal().sqrt()
    values, vectors = torch.linalg.eigh(curvature.matrix / torch.outer(scale, scale))
    values, vectors, scale = (tensor.to(weight.dtype) for tensor in (values, vectors, scale))
    dense = weight * scale
    pulled = (dense @ vectors) * values  # H W, in the eigenvectors of H
    mask = old = pattern.mask(dense.abs())
    sparse, dual = dense * mask, torch.zeros_like(dense)
    restarts = True
    for step in range(1, steps + 1):
        fitted = ((pulled + rho * ((sparse - dual) @ vectors)) / (values + rho)) @ vectors.T
        dual += fitted
        mask = pattern.mask(dual.abs())
        sparse = dual * mask
        dual -= sparse
        if step % EVERY:
            continue
        changed = int((mask ^ old).sum()) / (2 * int(mask.sum()))
        old = mask
        restarts = restarts and not changed
        if not changed and not restarts:
            break
        factor = next((pace for share, pace in PACE if changed > share), 0.2)
        rho, dual = rho * factor, dual / factor
    return masked(sparse / scale, mask)
