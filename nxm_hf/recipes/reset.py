"""The recipe `reset`: straight-through training that zeroes pruned weights now and then."""

from dataclasses import replace

from nxm_hf.methods import Masked
from nxm_hf.methods.schedules import Every
from nxm_hf.patterns import Pattern
from nxm_hf.recipes.ste import ste
from nxm_hf.settings import one_of


def reset(
    pattern: Pattern, every: int = 1000, reset_moments: str = "none", grad_scale: float = 1.0, refresh: int = 1
) -> Masked:
    """Train as `ste`, and on every `every`-th step set pruned weights to zero.

    Reference: Stosic and Stosic, 2021 (RESET of Algorithm 1), https://arxiv.org/abs/2105.12920
    Relations: `ste` when `every` is longer than training; with every=1 masks hardly change, as in `asp`. The
    optimizer's momentum grows pruned weights back at once, unless `reset_moments` is "first" or "both".
    """
    one_of("reset", "reset_moments", reset_moments, ("none", "first", "both"))
    return replace(ste(pattern, grad_scale, refresh), reset=Every(every), clear=reset_moments)
