"""Dense: plain training, pruned only on the way out."""

from dataclasses import dataclass

from nxm_hf.methods.base import Method, keep
from nxm_hf.patterns import Pattern


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
        mask = self.pattern.mask(weight.abs())
        keep(weight, mask)
        return mask
