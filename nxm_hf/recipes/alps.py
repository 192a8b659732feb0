"""The recipe `alps`: train densely, prune in the middle, and train on."""

from nxm_hf.methods import Masked
from nxm_hf.methods.schedules import ALWAYS, NEVER, Constant
from nxm_hf.patterns import Pattern
from nxm_hf.recipes.base import CalibratedStart, Recipe, Settings, check_preview


def alps(pattern: Pattern, preview: bool = False) -> Masked:
    """Train densely for half of the steps, prune by ALPS, then train the weights that are left.

    Reference: Meng et al., 2024, https://arxiv.org/abs/2406.07831
    Relations: `asp` with `scores="alps"` and a `warmup` of 0.5, and with a fallback. `admm` with `rho="auto"` has the
    same phases, and a weak pull at each step of the first.

    ALPS prunes each layer with inputs from the training data. It solves by ADMM which weights to keep, and what the
    kept ones are then, so that the outputs of the layer change least. Until then the training is a dense one. Without
    rows to read, as in a custom loop or with a stream, the mask is that of |W| times the root of the optimizer's mean
    squared gradient ("fisher"). A model that holds its pattern already is not pruned again.

    Args:
        pattern: The pattern of the mask.
        preview: Before the pruning, evaluate and save what ALPS would make of the weights. Each costs one more pruning.
            False shows the weights pruned by "fisher".
    """
    check_preview("alps", preview, "alps")
    return Masked(Constant(pattern), refresh=NEVER, freeze=ALWAYS, scores="fisher")


def _calibrated_start(settings: Settings) -> CalibratedStart:
    return CalibratedStart("alps", "recipe", required=False, preview=settings["preview"])


ALPS_RECIPE = Recipe(alps, warmup=0.5, calibrated_start=_calibrated_start)
