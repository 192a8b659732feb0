"""The recipe `reset`: straight-through training that sets pruned weights to zero from time to time."""

from dataclasses import replace

from nxm_hf.methods import Masked
from nxm_hf.methods.schedules import Every
from nxm_hf.patterns import Pattern
from nxm_hf.recipes.ste import ste
from nxm_hf.settings import at_least_one, one_of


def reset(
    pattern: Pattern, every: int = 1000, reset_moments: str = "none", grad_scale: float = 1.0, refresh: int = 1
) -> Masked:
    """Train as `ste`, and set pruned weights to zero on every `every`-th step.

    Reference: Stosic and Stosic, 2021 (RESET of Algorithm 1), https://arxiv.org/abs/2105.12920
    Relations: `ste` when `every` is longer than training; a warning is logged then. With every=1 masks hardly change,
    as in `asp`.

    Args:
        pattern: The pattern of the mask.
        every: The number of steps from one reset to the next.
        reset_moments: The optimizer's moments that a reset sets to zero: "none", "first" or "both". With "none",
            momentum grows pruned weights back at once.
        grad_scale: As in `ste`.
        refresh: The number of steps from one mask to the next.
    """
    one_of("reset", "reset_moments", reset_moments, ("none", "first", "both"))
    resets = Every(at_least_one("reset", "every", every, example=1000))
    return replace(ste(pattern, grad_scale, refresh), reset=resets, clear=reset_moments)
