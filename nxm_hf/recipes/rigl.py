"""The recipe `rigl`: rewire by the gradient."""

from nxm_hf.methods import Rewiring
from nxm_hf.patterns import Pattern
from nxm_hf.settings import at_least_one, at_least_zero, one_of


def rigl(pattern: Pattern, every: int = 100, fraction: float = 0.3, schedule: str = "cosine") -> Rewiring:
    """Keep the weight sparse; every `every` steps, drop its smallest weights and grow where the gradient is largest.

    Reference: Evci et al., 2020, https://arxiv.org/abs/1911.11134
    Relations: `asp` when fraction=0. Inside N:M each group grows as many weights as it dropped. A step that rewires
    does not train the weights.

    Args:
        pattern: The pattern of the mask.
        every: The number of steps from one rewiring to the next.
        fraction: The share of kept weights that the first rewiring drops; it falls to 0 by `schedule`.
        schedule: The shape of the fall, "cosine" or "linear".
    """
    return make_rewiring("rigl", pattern, "gradient", every, fraction, schedule)


def make_rewiring(name: str, pattern: Pattern, grow: str, every: int, fraction: float, schedule: str) -> Rewiring:
    """Check the settings of `rigl` or `set`, and return its method.

    Args:
        name: The recipe that error messages name.
        pattern: The pattern of the mask.
        grow: The growth scores, "gradient" or "random".
        every: The number of steps from one rewiring to the next.
        fraction: The share of kept weights that the first rewiring drops.
        schedule: The shape of its fall, "cosine" or "linear".

    Raises:
        ValueError: If a setting has a wrong value.
    """
    if at_least_zero(name, "fraction", fraction, example=0.3) > 1:
        raise ValueError(f"fraction of {name} is a share, 0 to 1; got {fraction!r}. Write fraction=0.3.")
    one_of(name, "schedule", schedule, ("cosine", "linear"))
    return Rewiring(pattern, grow, at_least_one(name, "every", every, example=100), float(fraction), schedule)
