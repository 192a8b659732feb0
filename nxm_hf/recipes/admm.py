"""The recipe `admm`: NxMTransformer."""

from nxm_hf.methods import ADMM, SCORES
from nxm_hf.methods.schedules import Constant, Evenly, Every, EveryEpoch, Growth, PeriodicSchedule, Schedule
from nxm_hf.patterns import Pattern
from nxm_hf.recipes.base import CALIBRATED_METHODS, CalibratedStart, Recipe, Settings, check_preview
from nxm_hf.settings import at_least_one, at_least_zero, one_of

RHO_START_RATIO = 1e-3


def admm(
    pattern: Pattern,
    rho: float | str = "auto",
    steps: int | str = "auto",
    penalty: str = "coupled",
    contraction: float = 1.0,
    start: str = "auto",
    dual: float = True,
    scores: str = "auto",
    rho_schedule: str = "constant",
    rho_start_ratio: float = RHO_START_RATIO,
    pull: str = "all",
    preview: bool = False,
) -> ADMM:
    """Train densely under a weak pull of ADMM, prune each layer by ADMM (ALPS), and train the weights that are left.

    Reference: Holmes et al., 2021, https://arxiv.org/abs/2110.15766
    Relations: unlike `ste`, the forward pass stays dense. The frozen-mask phase (`settle`) is `asp` on the final mask.
    With `rho="auto"` it is `alps` with a pull.

    With `rho="auto"` the pull is too weak to make a weight sparse. ALPS does that, halfway through the steps left after
    the warm-up: it solves by ADMM, layer by layer, which weights to keep so that the outputs change least. Then the
    mask is frozen, for the fraction `settle` of the config. With a number for `rho`, or "quantile", this is the paper's
    ADMM: the pull makes the weights sparse, they are pruned by magnitude at the end, and there is no frozen-mask phase.
    Masks of the paper's ADMM come to rest only if `rho` is large enough; `nxm/mask_similarity` and `nxm/disagreement`
    in the log tell if it is.

    Args:
        pattern: The final pattern.
        rho: The strength of the coupled penalty. "auto" measures it for each weight, as 0.003 of its gradient's norm.
            "quantile" measures, over the first 20 steps, the strength at which nine groups of ten can keep their mask.
        steps: The number of steps from one update of Z and U to the next, or "epoch". "auto" is about 80 steps, with
            at most 50 updates in all and the last at the end.
        penalty: "coupled" adds the penalty to the gradient; "decoupled" moves the weight before the step.
        contraction: The strength of the decoupled penalty: the fraction of the way to Z - U between two updates.
        start: The value of Z - U before the first update, "A", "B" or "C"; see `nxm_hf.methods.ADMM`. "auto" is "B",
            the nearest sparse weight, with a number or "quantile" for `rho`, and "C" otherwise.
        dual: The step of the dual variable U, a number from 0 to 1: U + dual * (W - Z). True is 1; with False there is
            no U. A number in between keeps U in memory, as large as the weight.
        scores: The scores of the final mask. "magnitude" is |W|. "fisher" is |W| times the root of the optimizer's
            mean squared gradient. A method of `nxm_hf.prune` prunes with rows of the training data when the
            frozen-mask phase starts. "auto" is "alps" with `rho="auto"`, or "fisher" if there are no rows, and
            "magnitude" with any other `rho`. Unless `rho="auto"`, "fisher" is the metric of the updates' projections
            as well. All other scores leave them to the magnitude.
        rho_schedule: How the strength changes from update to update: "constant"; "linear" or "geometric", growing to
            `rho` at the last update. The dual variable is scaled so that its force stays the same.
        rho_start_ratio: The first strength of a growing schedule, as a fraction of `rho`.
        pull: The weights that the penalty is on: "all", as in the paper; or "pruned", those that are zero in Z. Kept
            weights then train freely. The mask takes memory, a byte for each weight.
        preview: Before the frozen-mask phase, evaluate and save what a method of `nxm_hf.prune` in `scores` would make
            of the weights. Each costs one more pruning. False shows the nearest sparse weights, by fisher or magnitude.

    Raises:
        ValueError: If a setting has a wrong value, or is not a setting of this `penalty` or `rho`.
    """
    one_of("admm", "scores", scores, ("auto", *SCORES, *CALIBRATED_METHODS))
    one_of("admm", "penalty", penalty, ("coupled", "decoupled"))
    one_of("admm", "start", start, ("auto", "A", "B", "C"))
    one_of("admm", "pull", pull, ("all", "pruned"))
    check_preview("admm", preview, _method_of(rho, penalty, scores))
    automatic = _is_automatic(rho, penalty)
    if penalty == "decoupled" and rho != "auto":
        raise ValueError(f'rho={rho!r} is for penalty="coupled"; with "decoupled" set contraction=1.0 instead.')
    if penalty == "coupled" and contraction != 1.0:
        raise ValueError(f'contraction={contraction!r} is for penalty="decoupled"; with "coupled" set rho instead.')
    if rho == "auto" and rho_schedule != "constant":
        raise ValueError(f'rho_schedule={rho_schedule!r} needs a strength to grow to. Write rho=0.01, or "quantile".')
    if rho == "auto" and start == "auto":
        start = "C"
    return ADMM(
        pattern,
        rho=_strength(rho),
        contraction=at_least_zero("admm", "contraction", contraction),
        penalty=penalty,
        update=_update_schedule(steps),
        start="B" if start == "auto" else start,
        dual=_dual_step(dual),
        scores=scores if scores in SCORES else "fisher" if automatic else "magnitude",
        projection="fisher" if scores == "fisher" and not automatic else "magnitude",
        growth=_growth(rho_schedule, rho_start_ratio),
        pull=pull,
    )


def _strength(rho: float | str) -> float | str | None:
    if rho in ("auto", "quantile"):
        return None if rho == "auto" else rho
    return at_least_zero("admm", "rho", rho, example=0.01)


def _dual_step(dual: float) -> float:
    if not isinstance(dual, int | float) or not 0 <= dual <= 1:
        raise ValueError(f"dual of admm must be True, False or a number from 0 to 1; got {dual!r}. Write dual=0.5.")
    return dual


def _growth(rho_schedule: str, rho_start_ratio: float) -> Schedule[float]:
    one_of("admm", "rho_schedule", rho_schedule, ("constant", "linear", "geometric"))
    ratio = at_least_zero("admm", "rho_start_ratio", rho_start_ratio, example=RHO_START_RATIO)
    if not 0 < ratio <= 1:
        raise ValueError(f"rho_start_ratio of admm must be above 0 and at most 1; got {ratio}. Write 0.001.")
    if rho_schedule != "constant":
        return Growth(rho_schedule, ratio)
    if ratio != RHO_START_RATIO:
        raise ValueError(f'rho_start_ratio={ratio} is for a growing rho. Write rho_schedule="geometric" beside it.')
    return Constant(1.0)


def _update_schedule(steps: int | str) -> PeriodicSchedule:
    if not isinstance(steps, str):
        return Every(at_least_one("admm", "steps", steps))
    one_of("admm", "steps", steps, ("auto", "epoch"))
    return EveryEpoch() if steps == "epoch" else Evenly(80)


def _is_automatic(rho: float | str, penalty: str) -> bool:
    """Return True for the automatic strength, which comes with ALPS and a frozen-mask phase."""
    return (rho, penalty) == ("auto", "coupled")


def _settle(settings: Settings, warmup: float) -> float:
    return (1 - warmup) / 2 if _is_automatic(settings["rho"], settings["penalty"]) else 0.0


def _method_of(rho: float | str, penalty: str, scores: str) -> str | None:
    """Return the method that prunes with rows of the training data, or None."""
    if scores == "auto" and _is_automatic(rho, penalty):
        return "alps"
    return scores if scores in CALIBRATED_METHODS else None


def _calibrated_start(settings: Settings) -> CalibratedStart | None:
    scores, preview = settings["scores"], settings["preview"]
    method = _method_of(settings["rho"], settings["penalty"], scores)
    if method is None:
        return None
    by_fisher = 'NxMConfig("admm", settings={"scores": "fisher"})'
    return CalibratedStart(method, "settle", scores != "auto", preview, by_fisher)


ADMM_RECIPE = Recipe(admm, settle=_settle, calibrated_start=_calibrated_start)
