"""The recipe `acdc`: alternate between dense and sparse training."""

from dataclasses import dataclass
from math import ceil

from nxm_hf.methods import Masked
from nxm_hf.methods.schedules import ALWAYS, Clock
from nxm_hf.patterns import Dense, Pattern
from nxm_hf.settings import at_least_zero


@dataclass(frozen=True)
class Alternating:
    """Dense and `pattern` in turns of `period` (a fraction of training).

    Turns are counted back from the end of training, because the last turn is a sparse turn of full length.
    """

    pattern: Pattern
    period: float

    def turns_after(self, step: int, total: int) -> int:
        """Return the number of turns that follow the turn of a step.

        Args:
            step: The steps done.
            total: The steps of the whole training.
        """
        return max(ceil((total - max(step, 0)) / max(self.period * total, 1)) - 1, 0)

    def is_dense(self, step: int, total: int) -> bool:
        """Return True in a dense turn: every second turn before the last, and always the first.

        Args:
            step: The steps done.
            total: The steps of the whole training.
        """
        turns = self.turns_after(step, total)
        return turns % 2 == 1 or (turns > 0 and turns == self.turns_after(0, total))

    def __call__(self, clock: Clock) -> Pattern:
        return Dense() if self.is_dense(clock.step, clock.total) else self.pattern


@dataclass(frozen=True)
class AtTurns:
    """True at the steps where a turn of `Alternating` begins."""

    turns: Alternating

    def __call__(self, clock: Clock) -> bool:
        return self.turns.is_dense(clock.step, clock.total) != self.turns.is_dense(clock.last, clock.total)


def acdc(pattern: Pattern, period: float = 0.1) -> Masked:
    """Alternate dense and sparse training; weights that a sparse turn prunes start the next dense turn at zero.

    Reference: Peste et al., 2021, https://arxiv.org/abs/2106.12379
    Relations: `asp` in its last turn. The optimizer's moments are set to zero where the mask changes.

    Args:
        pattern: The pattern of the sparse turns.
        period: The length of a turn, as a fraction of training, above 0 and at most 0.5.
    """
    if not 0 < at_least_zero("acdc", "period", period, example=0.1) <= 0.5:
        raise ValueError(f"period of acdc is a fraction of training, above 0 to 0.5; got {period!r}. Write period=0.1.")
    turns = Alternating(pattern, float(period))
    return Masked(turns, refresh=AtTurns(turns), freeze=ALWAYS, clear="both")
