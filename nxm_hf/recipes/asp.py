"""The recipe `asp`: prune once, then train what is left."""

from nxm_hf.methods import SCORES, Masked
from nxm_hf.methods.schedules import ALWAYS, NEVER, Constant
from nxm_hf.patterns import Pattern
from nxm_hf.recipes.base import CALIBRATED_METHODS, CalibratedStart
from nxm_hf.settings import one_of


def asp(pattern: Pattern, scores: str = "magnitude") -> Masked:
    """Prune once, at the start or after a `warmup`, as `scores` says; pruned weights stay zero, with no gradient.

    Reference: Mishra et al., 2021, https://arxiv.org/abs/2104.08378
    Relations: what `settle` does at the end of every recipe, from the first step on. The cheapest recipe, and the one
    to beat. With a `warmup` it prunes what has been trained densely by then.
    `scores` of "fisher" are |W| times the root of the optimizer's mean squared gradient, and need that warm-up. With
    "wanda", "sparsegpt", "adaprune" or "alps" the model is pruned as by `nxm_hf.prune`, from rows of the training data,
    and goes on from the weights that come out of it; one that holds its pattern already is taken as it is.
    """
    one_of("asp", "scores", scores, (*SCORES, *CALIBRATED_METHODS))
    own = "magnitude" if scores in CALIBRATED_METHODS else scores
    return Masked(Constant(pattern), refresh=NEVER, freeze=ALWAYS, scores=own)


def _calibrated_start(scores: str = "magnitude", **others: object) -> CalibratedStart | None:
    """The method that looks at data, before the first masked step; the other scores are the recipe's own."""
    return CalibratedStart(scores, "recipe") if scores in CALIBRATED_METHODS else None


def _needs_warmup(scores: str = "magnitude", **others: object) -> bool:
    """Whether what the scores are made of is only known after some steps."""
    return scores == "fisher"


asp.calibrated_start, asp.needs_warmup = _calibrated_start, _needs_warmup
