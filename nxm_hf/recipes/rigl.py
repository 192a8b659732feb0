"""The recipe `rigl`: rewire by the gradient."""

from nxm_hf.methods import Rewiring
from nxm_hf.methods.schedules import Every
from nxm_hf.patterns import Pattern
from nxm_hf.settings import at_least_zero, one_of


def rigl(pattern: Pattern, every: int = 100, fraction: float = 0.3, schedule: str = "cosine") -> Rewiring:
    """Keep the weight sparse; every `every` steps drop its smallest weights and grow where the gradient is largest.

    Reference: Evci et al., 2020, https://arxiv.org/abs/1911.11134
    Relations: `asp` when fraction=0. `fraction` is the share of kept weights that is dropped, and falls to 0 by
    `schedule`. Inside N:M each group grows as many as it lost. A step that rewires trains none of these weights.
    """
    return rewired("rigl", pattern, "gradient", every, fraction, schedule)


def rewired(name: str, pattern: Pattern, grow: str, every: int, fraction: float, schedule: str) -> Rewiring:
    """The method of `rigl` and `set`, with its settings checked."""
    if at_least_zero(name, "fraction", fraction, example=0.3) > 1:
        raise ValueError(f"fraction of {name} is a share, 0 to 1; got {fraction!r}. Write fraction=0.3.")
    one_of(name, "schedule", schedule, ("cosine", "linear"))
    return Rewiring(pattern, grow, Every(every).steps, float(fraction), schedule)
