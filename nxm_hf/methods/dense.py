"""Dense training, pruned only at the end."""

from dataclasses import dataclass

from torch import Tensor

from nxm_hf.methods.base import Method, State
from nxm_hf.methods.schedules import Clock
from nxm_hf.methods.scores import best_mask
from nxm_hf.patterns import Pattern
from nxm_hf.solvers.weight_ops import keep


@dataclass(frozen=True)
class DenseTraining(Method):
    """Plain training, which leaves the weight and its gradient alone; `finish` prunes to `pattern` by `scores`."""

    pattern: Pattern
    scores: str = "magnitude"

    def init(self, weight: Tensor, clock: Clock) -> State:
        return {}

    def before_step(self, weight: Tensor, state: State, clock: Clock) -> None:
        pass

    def after_step(self, weight: Tensor, state: State, clock: Clock) -> None:
        pass

    def finish(self, weight: Tensor, state: State, clock: Clock) -> Tensor:
        mask = best_mask(weight, self.pattern, self.scores, clock)
        keep(weight, mask)
        return mask
