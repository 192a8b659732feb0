"""The recipe `regularize`: straight-through training that shrinks pruned weights after each step."""

from dataclasses import replace

from nxm_hf.methods import Masked
from nxm_hf.methods.schedules import Constant
from nxm_hf.patterns import Pattern
from nxm_hf.recipes.ste import ste
from nxm_hf.settings import at_least_zero


def regularize(pattern: Pattern, shrink: float = 2e-4, grad_scale: float = 1.0, refresh: int = 1) -> Masked:
    """Train as `ste`, and shrink pruned weights by the fraction `shrink` after each step, outside the optimizer.

    Reference: Stosic and Stosic, 2021 (REGULARIZE of Algorithm 1), https://arxiv.org/abs/2105.12920
    Relations: `ste` when shrink=0. `sr-ste` pulls through the gradient, so that its pull depends on the learning rate
    and on Adam's scaling. The pull of `regularize` is the same at every step.

    Args:
        pattern: The pattern of the mask.
        shrink: The fraction of pruned weights that is subtracted after each step.
        grad_scale: As in `ste`.
        refresh: The number of steps from one mask to the next.
    """
    shrink = at_least_zero("regularize", "shrink", shrink, example=2e-4)
    return replace(ste(pattern, grad_scale, refresh), shrink=Constant(shrink))
