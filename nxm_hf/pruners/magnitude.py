"""Magnitude: the smallest weights go."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from nxm_hf.patterns import Pattern
from nxm_hf.pruners.base import Inputs, OneShot, Pruned, by_magnitude


@dataclass(frozen=True)
class Magnitude(OneShot):
    """Keep the largest weights; nothing has to be known of the inputs.

    Reference: Mishra et al., 2021, https://arxiv.org/abs/2104.08378
    Relations: what every other method is measured against, and what they do where calibration saw no input.
    """

    needs_inputs: ClassVar[bool] = False

    def prune(self, weight: Tensor, bias: Tensor | None, inputs: Inputs | None, pattern: Pattern) -> Pruned:
        return by_magnitude(weight, pattern)
