"""Wanda: a weight is worth its size times that of its input."""

from dataclasses import dataclass

from torch import Tensor

from nxm_hf.patterns import Pattern
from nxm_hf.pruners.base import Inputs, OneShot, Pruned, masked


@dataclass(frozen=True)
class Wanda(OneShot):
    """Keep the largest weights once each is multiplied by the norm of its input; kept weights stay as they are.

    Reference: Sun et al., 2023, https://arxiv.org/abs/2306.11695
    Relations: `magnitude` with the inputs taken into account one by one; `sparsegpt` also knows how they go together.
    The pattern decides what is compared with what: weights of one group in N:M; all weights of the layer in
    "unstructured:0.5", where the paper compares within each row.
    """

    def prune(self, weight: Tensor, bias: Tensor | None, inputs: Inputs, pattern: Pattern) -> Pruned:
        return masked(weight, pattern.mask(weight.abs() * inputs.norms.to(weight.dtype)))
