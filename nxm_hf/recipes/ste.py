"""The recipe `ste`: the plain straight-through estimator."""

from nxm_hf.methods import Masked
from nxm_hf.methods.schedules import Constant, Every
from nxm_hf.patterns import Pattern
from nxm_hf.settings import at_least_one, at_least_zero


def ste(pattern: Pattern, grad_scale: float = 1.0, refresh: int = 1) -> Masked:
    """Compute with the masked weight, apply its gradient to the dense weight, and refresh the mask as it trains.

    Reference: Bengio et al., 2013, https://arxiv.org/abs/1308.3432
    Relations: `sr-ste` with decay=0.

    Args:
        pattern: The pattern of the mask.
        grad_scale: The scale of the gradient of pruned weights. Under an adaptive optimizer, which would cancel it,
            it scales the update of pruned weights instead.
        refresh: The number of steps from one mask to the next.
    """
    scale = at_least_zero("ste", "grad_scale", grad_scale)
    return Masked(Constant(pattern), refresh=Every(at_least_one("ste", "refresh", refresh)), grad_scale=Constant(scale))
