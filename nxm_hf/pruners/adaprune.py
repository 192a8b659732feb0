"""AdaPrune: the best weights for a mask, by least squares against the outputs of the dense layer."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from nxm_hf.patterns import Pattern
from nxm_hf.pruners.adam_fit import adam_fit
from nxm_hf.pruners.base import Inputs, OneShot, PrunedWeight, apply_mask, group_width
from nxm_hf.pruners.hessian import BIAS_MODES, Hessian, correct_bias
from nxm_hf.pruners.least_squares import least_squares
from nxm_hf.pruners.magnitude import Magnitude
from nxm_hf.pruners.sparsegpt import SparseGPT
from nxm_hf.pruners.wanda import Wanda
from nxm_hf.settings import at_least_one, at_least_zero, one_of

SCORES = ("magnitude", "wanda", "sparsegpt")
SOLVER_SETTINGS = {"gram": ("damping", "tolerance"), "adam": ("steps", "batch", "seed")}


@dataclass(frozen=True)
class AdaPrune(OneShot):
    """Choose a mask, then fit the kept weights and the bias to the outputs of the dense layer.

        min over V and c of || (W - mask * V) X + (b - c) 1^T ||^2

    Reference: Hubara et al., 2021, https://arxiv.org/abs/2102.08124
    Relations: takes the mask of `magnitude`, `wanda` or `sparsegpt`. With the first two, the fit starts from mean
    absorption: the sum of a group's pruned weights is spread over its kept weights.

    Args:
        scores: The method that gives the mask: "magnitude", "wanda" or "sparsegpt".
        solver: "gram" solves the least squares from the Gram matrix alone. "adam" is the paper's; it uses a sample of
            inputs, and ends with a larger error.
        bias: "after": set after the weights. "joint": fitted with the weights, as solver="adam" always does. "keep":
            not changed.
        damping: The value added to the diagonal of the Hessian, as a share of its mean; for solver="gram".
        tolerance: The share of the least error at which solver="gram" stops above it.
        steps: The number of steps of solver="adam".
        batch: Tokens per step of solver="adam".
        seed: The seed of the minibatches of solver="adam".
    """

    scores: str = "magnitude"
    solver: str = "gram"
    bias: str = "after"
    damping: float = 0.1
    tolerance: float = 1e-4
    steps: int = 1000
    batch: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("adaprune", "scores", self.scores, SCORES)
        one_of("adaprune", "solver", self.solver, tuple(SOLVER_SETTINGS))
        one_of("adaprune", "bias", self.bias, BIAS_MODES)
        at_least_zero("adaprune", "damping", self.damping, example=0.1)
        at_least_zero("adaprune", "tolerance", self.tolerance, example=1e-4)
        at_least_one("adaprune", "steps", self.steps, example=1000)
        at_least_one("adaprune", "batch", self.batch, example=50)
        other = "adam" if self.solver == "gram" else "gram"
        for field in fields(self):
            if field.name in SOLVER_SETTINGS[other] and (value := getattr(self, field.name)) != field.default:
                raise ValueError(f'{field.name}={value!r} is for solver="{other}"; got solver={self.solver!r}.')

    @property
    def needs_sample(self) -> bool:
        return self.solver == "adam"

    def prune(self, weight: Tensor, bias: Tensor | None, inputs: Inputs, pattern: Pattern) -> PrunedWeight:
        start = self._start(weight, bias, inputs, pattern)
        if self.solver == "adam":
            assert inputs.sample is not None  # `__call__` has checked that
            fitted_bias = None if self.bias == "keep" else bias
            return adam_fit(weight, fitted_bias, start, inputs.sample, self.steps, self.batch, self.seed)
        hessian = Hessian.for_bias_mode(inputs, self.damping, bias, self.bias)
        fitted = least_squares(weight, start.mask, start.weight, hessian, self.tolerance)
        return correct_bias(apply_mask(fitted, start.mask), weight, bias, inputs, self.bias)

    def _start(self, weight: Tensor, bias: Tensor | None, inputs: Inputs, pattern: Pattern) -> PrunedWeight:
        """Return the mask, and the weights that the fit starts from."""
        if self.scores == "sparsegpt":
            return SparseGPT(self.damping, self.bias).prune(weight, bias, inputs, pattern)
        method: OneShot = Wanda() if self.scores == "wanda" else Magnitude()
        start = method.prune(weight, bias, inputs, pattern)
        start.weight = mean_absorption(weight, start.mask, group_width(pattern) or weight.shape[-1])
        return start


def mean_absorption(weight: Tensor, mask: Tensor, width: int) -> Tensor:
    """Spread the sum of the pruned weights of each group evenly over the kept weights of the group.

    Args:
        weight: The dense weight, [out, in].
        mask: True where a weight is kept, [out, in].
        width: The number of columns of a group.

    Returns:
        The new weight, [out, in], zero outside the mask.

    >>> mean_absorption(torch.tensor([[0.8, -0.3, 0.5, 0.1]]), torch.tensor([[True, False, True, False]]), 4)
    tensor([[0.7000, 0.0000, 0.4000, 0.0000]])
    """
    groups, kept = weight.unflatten(-1, (-1, width)), mask.unflatten(-1, (-1, width))
    lost = torch.where(kept, 0, groups).sum(-1, keepdim=True)
    share = lost / kept.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(kept, groups + share, 0).flatten(-2)
