"""The recipe `asp`: prune once, then train what is left."""

from nxm_hf import oneshot
from nxm_hf.checks import one_of
from nxm_hf.methods import Masked
from nxm_hf.patterns import Pattern
from nxm_hf.schedules import ALWAYS, NEVER, Constant


def asp(pattern: Pattern, scores: str = "magnitude") -> Masked:
    """Prune once, before the first step, by magnitude or as `scores` says; pruned weights stay zero, with no gradient.

    Reference: Mishra et al., 2021, https://arxiv.org/abs/2104.08378
    Relations: what `settle` does at the end of every recipe, from the first step on. The cheapest recipe, and the one
    to beat: `admm` chooses its mask while it trains. With `scores` of "wanda", "sparsegpt", "adaprune" or "alps" the
    model is first pruned as by `nxm_hf.prune`, from rows of the training data, and trained from the weights that come
    out of it; a model that holds its pattern already is taken as it is. There can be no `warmup` before that.
    """
    one_of("asp", "scores", scores, oneshot.names())
    return Masked(Constant(pattern), refresh=NEVER, freeze=ALWAYS)


def _pruned_by(scores: str = "magnitude", **others: object) -> str | None:
    """The method that looks at data; magnitude is the recipe's own."""
    return None if scores == "magnitude" else scores


asp.pruned_by = _pruned_by
