"""The recipe `asp`: prune once, then train the weights that are left."""

from nxm_hf.methods import SCORES, Masked
from nxm_hf.methods.schedules import ALWAYS, NEVER, Constant
from nxm_hf.patterns import Pattern
from nxm_hf.recipes.base import CALIBRATED_METHODS, CalibratedStart, Recipe, Settings, check_preview
from nxm_hf.settings import one_of


def asp(pattern: Pattern, scores: str = "magnitude", preview: bool = False) -> Masked:
    """Prune once, at the start or after a `warmup`, by `scores`; pruned weights stay zero and get no gradient.

    Reference: Mishra et al., 2021, https://arxiv.org/abs/2104.08378
    Relations: the frozen-mask phase (`settle`) of every recipe, from the first step on. The cheapest recipe, and the
    baseline for the others. With a `warmup` it prunes the weights that were trained densely until then.

    Args:
        pattern: The pattern of the mask.
        scores: The scores of the mask. "magnitude" is |W|. "fisher" is |W| times the root of the optimizer's mean
            squared gradient, and needs a `warmup`. "wanda", "sparsegpt", "adaprune" and "alps" prune the model as
            `nxm_hf.prune` does, with rows of the training data. Training continues from the resulting weights. A
            model that holds its pattern already is not pruned again.
        preview: In the warm-up, evaluate and save what such a method would make of the weights. Each costs one more
            pruning. False shows the weights pruned by magnitude.
    """
    check_preview("asp", preview, scores if scores in CALIBRATED_METHODS else None)
    one_of("asp", "scores", scores, (*SCORES, *CALIBRATED_METHODS))
    return Masked(
        Constant(pattern),
        refresh=NEVER,
        freeze=ALWAYS,
        scores="magnitude" if scores in CALIBRATED_METHODS else scores,  # the mask of weights that are sparse already
    )


def _calibrated_start(settings: Settings) -> CalibratedStart | None:
    scores = settings["scores"]
    return CalibratedStart(scores, "recipe", preview=settings["preview"]) if scores in CALIBRATED_METHODS else None


def _needs_warmup(settings: Settings) -> bool:
    return settings["scores"] == "fisher"  # the optimizer knows no gradients before its first step


ASP_RECIPE = Recipe(asp, calibrated_start=_calibrated_start, needs_warmup=_needs_warmup)
