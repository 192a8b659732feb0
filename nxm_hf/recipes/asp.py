"""The recipe `asp`: prune once, then train what is left."""

from nxm_hf import oneshot
from nxm_hf.methods import Masked
from nxm_hf.patterns import Pattern
from nxm_hf.schedules import ALWAYS, NEVER, Constant


def asp(pattern: Pattern, scores: str = "magnitude") -> Masked:
    """Prune by magnitude before the first step; pruned weights stay zero and get no gradient.

    Reference: Mishra et al., 2021, https://arxiv.org/abs/2104.08378
    Relations: what `settle` does at the end of every recipe, from the first step on. The cheapest recipe, and the one
    to beat: `admm` chooses its mask while it trains.
    """
    if scores in oneshot.names() and scores != "magnitude":
        raise ValueError(
            f"scores={scores!r} looks at what enters the layers, which no recipe does. Prune first, with "
            f'nxm_hf.prune(model, "{pattern}", "{scores}", calibration) or `nxm prune MODEL OUT --pattern {pattern} '
            f"--method {scores} --calibration FILE`; then train without sparsity=, which keeps the mask."
        )
    if scores != "magnitude":
        raise ValueError(f'asp knows no scores {scores!r}; it needs "magnitude". Write scores="magnitude".')
    return Masked(Constant(pattern), refresh=NEVER, freeze=ALWAYS)
