"""Dense: plain training, pruned only on the way out."""

from dataclasses import dataclass

from nxm_hf.methods.base import Method
from nxm_hf.patterns import Pattern
from nxm_hf.solvers.fused import keep


@dataclass(frozen=True)
class Dense(Method):
    """Leave the weight and its gradient alone; `finish` projects to `pattern`."""

    pattern: Pattern

    def init(self, weight, clock):
        return {}

    def before_step(self, weight, state, clock):
        pass

    def after_step(self, weight, state, clock):
        pass

    def finish(self, weight, state, clock):
        mask = self.pattern.largest(weight)
        keep(weight, mask)
        return mask
