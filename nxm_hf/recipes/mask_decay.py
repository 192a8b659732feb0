"""The recipe `mask-decay`: fade pruned weights out of the forward pass."""

from nxm_hf.methods import Masked
from nxm_hf.methods.schedules import Constant, Decay, Every
from nxm_hf.patterns import Pattern
from nxm_hf.settings import at_least_one, at_least_zero, one_of


def mask_decay(
    pattern: Pattern, schedule: str = "linear", rate: float | None = None, grad: str = "chain", refresh: int = 1
) -> Masked:
    """Multiply pruned weights in the forward pass by a gain that falls from 1 to 0, so that they fade out.

    Reference: Kao et al., 2022 (MDGF), https://arxiv.org/abs/2209.07617
    Relations: `ste` once the gain is 0 and grad="ste". The paper's d and f are the config's `warmup` and `settle`.

    Args:
        pattern: The pattern of the mask.
        schedule: The shape of the fall, "linear" or "exponential".
        rate: The amount subtracted from the gain in each step (linear), or the exponent of each step (exponential).
            By default, a linear gain reaches 0 at the end of the recipe's steps and an exponential gain e^-5.
        grad: "chain" scales the gradient of pruned weights by the gain, as the chain rule does; "ste" does not.
        refresh: The number of steps from one mask to the next.
    """
    one_of("mask-decay", "schedule", schedule, ("linear", "exponential"))
    one_of("mask-decay", "grad", grad, ("chain", "ste"))
    rate = None if rate is None else at_least_zero("mask-decay", "rate", rate, example=1e-3)
    gain = Decay(schedule, rate)
    every = Every(at_least_one("mask-decay", "refresh", refresh))
    return Masked(Constant(pattern), refresh=every, gain=gain, chain=grad == "chain")
