"""The recipe `regularize`: straight-through training that shrinks pruned weights after each step."""

from dataclasses import replace

from nxm_hf.methods import Masked
from nxm_hf.methods.schedules import Constant
from nxm_hf.patterns import Pattern
from nxm_hf.recipes.ste import ste
from nxm_hf.settings import at_least_zero


def regularize(pattern: Pattern, shrink: float = 2e-4, grad_scale: float = 1.0, refresh: int = 1) -> Masked:
    """Train as `ste`, and after each step take the part `shrink` off pruned weights, outside the optimizer.

    Reference: Stosic and Stosic, 2021 (REGULARIZE of Algorithm 1), https://arxiv.org/abs/2105.12920
    Relations: `sr-ste` pulls through the gradient, so its pull fades with the learning rate and hides in Adam;
    this one is the same at every step. `ste` when shrink=0.
    """
    shrink = at_least_zero("regularize", "shrink", shrink, example=2e-4)
    return replace(ste(pattern, grad_scale, refresh), shrink=Constant(shrink))
