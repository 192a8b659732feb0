"""The recipe `fade`: shrink pruned weights to zero in a straight line while they train."""

from nxm_hf.methods import SCORES, Masked
from nxm_hf.methods.schedules import Constant, Every, ShareOfTheRest
from nxm_hf.patterns import Pattern
from nxm_hf.recipes.base import Recipe, Settings
from nxm_hf.settings import at_least_one, one_of


def fade(pattern: Pattern, scores: str = "fisher", refresh: int = 10) -> Masked:
    """Train the dense weight, and shrink pruned weights alone by 1/(steps left) after each step, until they are zero.

    Reference: Huang et al., 2025 (CAST), https://arxiv.org/abs/2509.25996
    Relations: `regularize` with a dense forward pass and a fraction that grows to 1. Unlike `admm`, it does not pull
    kept weights, and there is no strength to tune. CAST, its neighbour, decays weights inside the optimizer and learns
    from the dense model; a `teacher` of `NxMTrainer` does the latter. `mask-decay` fades pruned weights in the forward
    pass instead, by a gain.

    A weight that stays pruned goes to zero in a straight line, apart from the optimizer's own updates. At the end
    nothing is left to prune. If the config sets none, there is a dense `warmup` of 0.2 before the weights shrink, and a
    frozen-mask phase (`settle`) of 0.3 after it.

    Args:
        pattern: The pattern of the mask.
        scores: "fisher", |W| times the root of the optimizer's mean squared gradient, or "magnitude". Without a mean
            for each entry, "fisher" falls back to magnitude.
        refresh: The number of steps from one mask to the next.
    """
    one_of("fade", "scores", scores, SCORES)
    return Masked(
        Constant(pattern),
        refresh=Every(at_least_one("fade", "refresh", refresh, example=10)),
        gain=Constant(1.0),
        shrink=ShareOfTheRest(),
        scores=scores,
    )


def _settle(settings: Settings, warmup: float) -> float:
    return min(0.3, (1 - warmup) / 2)


FADE_RECIPE = Recipe(fade, warmup=0.2, settle=_settle)
