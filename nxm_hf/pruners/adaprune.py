"""AdaPrune: the best weights for a mask, by least squares against the outputs of the dense layer."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from nxm_hf.patterns import Pattern
from nxm_hf.pruners.adam_fit import descend
from nxm_hf.pruners.base import Inputs, OneShot, Pruned, groups_of, masked
from nxm_hf.pruners.hessian import BIASES, curvature_of, with_bias
from nxm_hf.pruners.least_squares import refit
from nxm_hf.pruners.magnitude import Magnitude
from nxm_hf.pruners.sparsegpt import SparseGPT
from nxm_hf.pruners.wanda import Wanda
from nxm_hf.settings import at_least_one, at_least_zero, one_of

SCORES = ("magnitude", "wanda", "sparsegpt")
SETTINGS = {"gram": ("damping", "tolerance"), "adam": ("steps", "batch", "seed")}


@dataclass(frozen=True)
class AdaPrune(OneShot):
    """Choose a mask, then fit the kept weights and the bias to the outputs of the dense layer.

        min over V and c of || (W - mask * V) X + (b - c) 1^T ||^2

    Reference: Hubara et al., 2021, https://arxiv.org/abs/2102.08124
    Relations: `magnitude`, `wanda` or `sparsegpt` (`scores`) gives the mask. It starts from mean absorption: what a
    group loses is shared out among what it keeps. `solver="gram"` solves the least squares from the Gram matrix alone,
    to a share `tolerance` of the least error; `solver="adam"` is the paper's, `steps` minibatches of `batch` tokens of
    a sample, and ends above it. It fits weights and bias together, as bias="joint" does; with "after" the bias is moved
    when the weights stand, and with "keep" it stays.
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
        one_of("adaprune", "solver", self.solver, tuple(SETTINGS))
        one_of("adaprune", "bias", self.bias, BIASES)
        at_least_zero("adaprune", "damping", self.damping, example=0.1)
        at_least_zero("adaprune", "tolerance", self.tolerance, example=1e-4)
        at_least_one("adaprune", "steps", self.steps, example=1000)
        at_least_one("adaprune", "batch", self.batch, example=50)
        other = "adam" if self.solver == "gram" else "gram"
        for field in fields(self):
            if field.name in SETTINGS[other] and (value := getattr(self, field.name)) != field.default:
                raise ValueError(f'{field.name}={value!r} is for solver="{other}"; got solver={self.solver!r}.')

    @property
    def needs_sample(self) -> bool:
        return self.solver == "adam"

    def prune(self, weight: Tensor, bias: Tensor | None, inputs: Inputs, pattern: Pattern) -> Pruned:
        chosen = self._chosen(weight, bias, inputs, pattern)
        if self.solver == "adam":
            moved = None if self.bias == "keep" else bias
            return descend(weight, moved, chosen, inputs.sample, self.steps, self.batch, self.seed)
        fitted = refit(weight, chosen.mask, chosen.weight, curvature_of(self, bias, inputs), self.tolerance)
        return with_bias(masked(fitted, chosen.mask), self, weight, bias, inputs)

    def _chosen(self, weight: Tensor, bias: Tensor | None, inputs: Inputs, pattern: Pattern) -> Pruned:
        """The mask, and weights to start from."""
        if self.scores == "sparsegpt":
            return SparseGPT(self.damping, self.bias).prune(weight, bias, inputs, pattern)
        method = Wanda() if self.scores == "wanda" else Magnitude()
        chosen = method.prune(weight, bias, inputs, pattern)
        chosen.weight = absorbed(weight, chosen.mask, groups_of(pattern) or weight.shape[-1])
        return chosen


def absorbed(weight: Tensor, mask: Tensor, width: int) -> Tensor:
    """The masked weight with the sum of what each group of `width` loses shared out among what it keeps.

    >>> absorbed(torch.tensor([[0.8, -0.3, 0.5, 0.1]]), torch.tensor([[True, False, True, False]]), 4)
    tensor([[0.7000, 0.0000, 0.4000, 0.0000]])
    """
    groups, kept = weight.unflatten(-1, (-1, width)), mask.unflatten(-1, (-1, width))
    lost = torch.where(kept, 0, groups).sum(-1, keepdim=True)
    share = lost / kept.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(kept, groups + share, 0).flatten(-2)
