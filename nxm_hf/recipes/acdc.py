"""The recipe `acdc`: alternate between dense and sparse training."""

from dataclasses import dataclass
from math import ceil

from nxm_hf.methods import Masked
from nxm_hf.methods.schedules import ALWAYS, Clock
from nxm_hf.patterns import Dense, Pattern
from nxm_hf.settings import at_least_zero


@dataclass(frozen=True)
class Alternating:
    """Dense and `pattern` in turns of `period` (a fraction of training), counted from the end, where it is sparse."""

    pattern: Pattern
    period: float

    def turn(self, step: int, total: int) -> int:
        """How many turns come after the one of this step."""
        return max(ceil((total - max(step, 0)) / max(self.period * total, 1)) - 1, 0)

    def dense(self, step: int, total: int) -> bool:
        """Whether this step is of a dense turn, as every second one is, and the first."""
        turn = self.turn(step, total)
        return turn % 2 == 1 or (turn > 0 and turn == self.turn(0, total))

    def __call__(self, clock: Clock) -> Pattern:
        return Dense() if self.dense(clock.step, clock.total) else self.pattern


@dataclass(frozen=True)
class AtTurns:
    """True where `Alternating` changes."""

    turns: Alternating

    def __call__(self, clock: Clock) -> bool:
        return self.turns.dense(clock.step, clock.total) != self.turns.dense(clock.last, clock.total)


def acdc(pattern: Pattern, period: float = 0.1) -> Masked:
    """Train dense and sparse in turns; what a sparse turn pruned starts the next dense one at zero.

    Reference: Peste et al., 2021, https://arxiv.org/abs/2106.12379
    Relations: `asp` in its last turn. `period` is the length of a turn as a fraction of training; where the mask
    changes, the optimizer's moments start anew.
    """
    if not 0 < at_least_zero("acdc", "period", period, example=0.1) <= 0.5:
        raise ValueError(f"period of acdc is a fraction of training, above 0 to 0.5; got {period!r}. Write period=0.1.")
    turns = Alternating(pattern, float(period))
    return Masked(turns, refresh=AtTurns(turns), freeze=ALWAYS, clear="both")
