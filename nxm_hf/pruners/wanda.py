"""Wanda: score each weight by its magnitude times the norm of its input."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from nxm_hf.patterns import Pattern
from nxm_hf.pruners.base import Inputs, OneShot, PrunedWeight, apply_mask


@dataclass(frozen=True)
class Wanda(OneShot):
    """Keep the weights whose magnitude times input norm is largest; kept weights do not change.

        score_ij = |W_ij| ||X_j||

    Reference: Sun et al., 2023, https://arxiv.org/abs/2306.11695
    Relations: `magnitude` weighted by each input's norm; `sparsegpt` also uses the correlations between inputs.
    A transposable or block mask keeps the largest sum of squared scores, which is the least output error if inputs are
    uncorrelated. The pattern decides which scores compete: those of one group in N:M, those of the whole layer in
    "unstructured:0.5". The paper's unstructured form compares within each row.
    """

    needs_gram: ClassVar[bool] = False

    def prune(self, weight: Tensor, bias: Tensor | None, inputs: Inputs, pattern: Pattern) -> PrunedWeight:
        return apply_mask(weight, pattern.nearest(weight * inputs.norms.to(weight.dtype)))
