"""The recipe `admm`: NxMTransformer."""

from nxm_hf.methods import ADMM, SCORES
from nxm_hf.methods.schedules import Evenly, Every, EveryEpoch, PeriodicSchedule
from nxm_hf.patterns import Pattern
from nxm_hf.recipes.base import CALIBRATED_METHODS, CalibratedStart, Recipe, Settings
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
    """Train the dense weight while ADMM pulls it towards a sparse one, then prune it.

    Reference: Holmes et al., 2021, https://arxiv.org/abs/2110.15766
    Relations: unlike `ste`, the forward pass stays dense. The frozen-mask phase (`settle`) is `asp` on the final mask.

    With `rho="auto"` the model is pruned by ALPS halfway through the steps left after the warm-up, then trained with
    a frozen mask. With a number for `rho` it is the paper's ADMM: pruned by magnitude at the end, without a
    frozen-mask phase. The config's `settle` sets another frozen-mask phase.

    Args:
        pattern: The final pattern.
        rho: The strength of the coupled penalty; "auto" measures it for each weight, relative to its gradient.
        steps: The number of steps from one update of Z and U to the next; "epoch"; or "auto", about 80 steps, with
            at most 50 updates in all and the last at the end.
        penalty: "coupled" adds the penalty to the gradient; "decoupled" moves the weight before the step.
        contraction: The strength of the decoupled penalty: the fraction of the way to Z - U between two updates.
        start: The value of Z - U before the first update, "A", "B" or "C"; see `nxm_hf.methods.ADMM`.
        dual: If False, there is no dual variable U.
        scores: The scores of the final mask: "magnitude"; "fisher", |W| times the root of the optimizer's mean
            squared gradient; or a method of `nxm_hf.prune`, which prunes with rows of the training data when the
            frozen-mask phase starts. "auto" is "alps" with `rho="auto"`, or "fisher" if there are no rows, and
            "magnitude" with any other `rho`.

    Raises:
        ValueError: If a setting has a wrong value, or is not a setting of this `penalty`.
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
        update=_update_schedule(steps),
        start=start,
        dual=dual,
        scores=scores if scores in SCORES else "fisher" if _is_automatic(rho, penalty) else "magnitude",
    )


def _update_schedule(steps: int | str) -> PeriodicSchedule:
    if not isinstance(steps, str):
        return Every(steps)
    one_of("admm", "steps", steps, ("auto", "epoch"))
    return EveryEpoch() if steps == "epoch" else Evenly(80)


def _is_automatic(rho: float | str, penalty: str) -> bool:
    """Return True for the automatic strength, which comes with ALPS and a frozen-mask phase."""
    return (rho, penalty) == ("auto", "coupled")


def _settle(settings: Settings, warmup: float) -> float:
    return (1 - warmup) / 2 if _is_automatic(settings["rho"], settings["penalty"]) else 0.0


def _calibrated_start(settings: Settings) -> CalibratedStart | None:
    scores = settings["scores"]
    if scores == "auto" and _is_automatic(settings["rho"], settings["penalty"]):
        return CalibratedStart("alps", "settle", required=False)
    return CalibratedStart(scores, "settle") if scores in CALIBRATED_METHODS else None


ADMM_RECIPE = Recipe(admm, settle=_settle, calibrated_start=_calibrated_start)
