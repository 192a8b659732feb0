"""The recipe `fix`: straight-through training whose mask is frozen halfway."""

from nxm_hf.methods import Masked
from nxm_hf.patterns import Pattern
from nxm_hf.recipes.base import Recipe
from nxm_hf.recipes.ste import ste


def fix(pattern: Pattern, grad_scale: float = 1.0, refresh: int = 1) -> Masked:
    """Train as `ste` for the first half, then freeze the mask; pruned weights stay zero from there on.

    Reference: Stosic and Stosic, 2021 (FIX of "Advances in Sparse Neural Model Training"), https://arxiv.org/abs/2105.12920
    Relations: `ste` with settle=0.5, frozen one step earlier, as in Algorithm 1. Another `settle` in the config moves
    the point where the mask is frozen.

    Args:
        pattern: The pattern of the mask.
        grad_scale: As in `ste`.
        refresh: The number of steps from one mask to the next.
    """
    return ste(pattern, grad_scale, refresh)


# Algorithm 1 zeroes what is pruned from the end of step v = T / 2 on, by the mask of step v. This is the mask of the
# weights after step v - 1.
FIX_RECIPE = Recipe(fix, settle=0.5, early=1)
