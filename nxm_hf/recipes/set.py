"""The recipe `set`: rewire at random."""

from nxm_hf.methods import Rewiring
from nxm_hf.patterns import Pattern
from nxm_hf.recipes.rigl import make_rewiring


def set(pattern: Pattern, every: int = 100, fraction: float = 0.3, schedule: str = "cosine") -> Rewiring:
    """Keep the weight sparse; every `every` steps, drop its smallest weights and grow others at random.

    Reference: Mocanu et al., 2018, https://arxiv.org/abs/1707.04780
    Relations: `rigl` grows where the gradient is largest; `set` needs no dense gradient.

    Args:
        pattern: The pattern of the mask.
        every: The number of steps from one rewiring to the next.
        fraction: The share of kept weights that the first rewiring drops; it falls to 0 by `schedule`.
        schedule: The shape of the fall, "cosine" or "linear".
    """
    return make_rewiring("set", pattern, "random", every, fraction, schedule)
