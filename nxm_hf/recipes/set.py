"""The recipe `set`: rewire by chance."""

from nxm_hf.methods import Rewiring
from nxm_hf.patterns import Pattern
from nxm_hf.recipes.rigl import rewired


def set(pattern: Pattern, every: int = 100, fraction: float = 0.3, schedule: str = "cosine") -> Rewiring:
    """Keep the weight sparse; every `every` steps drop its smallest weights and grow others by chance.

    Reference: Mocanu et al., 2018, https://arxiv.org/abs/1707.04780
    Relations: `rigl` grows where the gradient is largest; this one needs no dense gradient.
    """
    return rewired("set", pattern, "random", every, fraction, schedule)
