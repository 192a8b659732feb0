"""Magnitude pruning: the smallest weights are pruned."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from nxm_hf.patterns import Pattern
from nxm_hf.pruners.base import Inputs, OneShot, PrunedWeight, prune_by_magnitude


@dataclass(frozen=True)
class Magnitude(OneShot):
    """Keep the largest weights; no calibration data is needed.

    Reference: Mishra et al., 2021, https://arxiv.org/abs/2104.08378
    Relations: the baseline of all other methods, and their fallback where calibration saw no input.
    """

    needs_inputs: ClassVar[bool] = False
    needs_gram: ClassVar[bool] = False

    def prune(self, weight: Tensor, bias: Tensor | None, inputs: Inputs | None, pattern: Pattern) -> PrunedWeight:
        return prune_by_magnitude(weight, pattern)
