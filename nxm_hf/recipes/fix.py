"""The recipe `fix`: straight-through training whose mask is frozen half-way."""

from nxm_hf.methods import Masked
from nxm_hf.patterns import Pattern
from nxm_hf.recipes.ste import ste


def fix(pattern: Pattern, grad_scale: float = 1.0, refresh: int = 1) -> Masked:
    """Train as `ste` for the first half; from there on the mask is frozen, and what it prunes stays zero.

    Reference: Stosic and Stosic, 2021 (FIX of "Advances in Sparse Neural Model Training"), https://arxiv.org/abs/2105.12920
    Relations: `ste` with settle=0.5, and nothing else; another `settle` in the config moves the point.
    """
    return ste(pattern, grad_scale, refresh)


fix.settle = 0.5  # where the config does not say
