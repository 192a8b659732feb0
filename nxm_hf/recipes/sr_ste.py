"""The recipe `sr-ste`: straight-through training that pulls pruned weights to zero."""

from dataclasses import replace

from nxm_hf.methods import Masked
from nxm_hf.methods.schedules import Constant
from nxm_hf.patterns import Pattern
from nxm_hf.recipes.ste import ste
from nxm_hf.settings import at_least_zero


def sr_ste(pattern: Pattern, decay: float = 2e-4, grad_scale: float = 1.0, refresh: int = 1) -> Masked:
    """Train as `ste`, and add `decay` times the weight to the gradient of pruned weights, which stabilizes masks.

    Reference: Zhou et al., 2021, https://arxiv.org/abs/2102.04010
    Relations: `ste` when decay=0.

    Args:
        pattern: The pattern of the mask.
        decay: The strength of the pull to zero. It is applied after gradient clipping, once per optimizer step. Under
            Adam its strength is relative to the size of the gradients.
        grad_scale: As in `ste`.
        refresh: The number of steps from one mask to the next.
    """
    decay = at_least_zero("sr-ste", "decay", decay, example=2e-4)
    return replace(ste(pattern, grad_scale, refresh), pull=Constant(decay))
