"""The recipe `admm`: NxMTransformer."""

from nxm_hf.methods import ADMM, SCORES
from nxm_hf.methods.schedules import Evenly, Every, EveryEpoch, Schedule
from nxm_hf.patterns import Pattern
from nxm_hf.recipes.base import CALIBRATED_METHODS, CalibratedStart
from nxm_hf.settings import at_least_zero, one_of


def admm(
    pattern: Pattern,
    rho: float | str = "auto",
    steps: int | str = "auto",
    penalty: str = "coupled",
    contraction: float = 1.0,
    start: str = "C",
    dual: bool = True,
    scores: str = "auto",
) -> ADMM:
    """Train the dense weight while ADMM pulls it to the nearest sparse one; prune hard at the end.

    Reference: Holmes et al., 2021, https://arxiv.org/abs/2110.15766
    Relations: unlike `ste` the forward pass stays dense; with `settle` the last stretch is `asp` on its mask.
    `rho` is the strength of the coupled penalty ("auto": relative to the gradient, by weight); `contraction` that of
    the decoupled one, the part of the way it goes from one update to the next. `steps` from one update to the next:
    a number, "epoch", or "auto" (about 80, at most 50 updates in all, the last at the end). `scores` choose what is
    kept in the end: "magnitude", "fisher", |W| times the root of the optimizer's mean squared gradient, or a method of
    `nxm_hf.prune`, which makes the weights that settling goes on from by rows of the training data. With `rho` left at
    "auto" that is "alps", or "fisher" where no rows are at hand, and the last half of training (of what a warm-up
    leaves) settles, where the config's `settle` says nothing else; a `rho` of one's own is the paper's ADMM: by
    magnitude, and without settling.
    """
    one_of("admm", "scores", scores, ("auto", *SCORES, *CALIBRATED_METHODS))
    one_of("admm", "penalty", penalty, ("coupled", "decoupled"))
    one_of("admm", "start", start, ("C", "A", "B"))
    one_of("admm", "dual", dual, (True, False))
    if penalty == "decoupled" and rho != "auto":
        raise ValueError(f'rho={rho!r} is for penalty="coupled"; with "decoupled" set contraction=1.0 instead.')
    if penalty == "coupled" and contraction != 1.0:
        raise ValueError(f'contraction={contraction!r} is for penalty="decoupled"; with "coupled" set rho instead.')
    return ADMM(
        pattern,
        rho=None if rho == "auto" else at_least_zero("admm", "rho", rho, example=0.01),
        contraction=at_least_zero("admm", "contraction", contraction),
        penalty=penalty,
        update=_updates(steps),
        start=start,
        dual=dual,
        scores=scores if scores in SCORES else "fisher" if _is_ours(rho, penalty) else "magnitude",
    )


def _settle(warmup: float, rho: float | str = "auto", penalty: str = "coupled", **others: object) -> float:
    """The last fraction of training that settles, where the config does not say: all auto, or all the paper's."""
    return (1 - warmup) / 2 if _is_ours(rho, penalty) else 0.0


def _calibrated_start(
    scores: str = "auto", rho: float | str = "auto", penalty: str = "coupled", **others: object
) -> CalibratedStart | None:
    """The method that looks at data where settling begins; what is shown before then goes by the recipe's scores."""
    if scores == "auto" and _is_ours(rho, penalty):
        return CalibratedStart("alps", "settle", required=False)
    return CalibratedStart(scores, "settle") if scores in CALIBRATED_METHODS else None


def _is_ours(rho: float | str, penalty: str) -> bool:
    """Whether its strength is left to us."""
    return (rho, penalty) == ("auto", "coupled")


admm.settle, admm.calibrated_start = _settle, _calibrated_start


def _updates(steps: int | str) -> Schedule[bool]:
    named = {"auto": Evenly(80), "epoch": EveryEpoch()}
    if isinstance(steps, str):
        one_of("admm", "steps", steps, tuple(named))
        return named[steps]
    return Every(steps)
