"""Dense: plain training, pruned only on the way out."""

from dataclasses import dataclass

from nxm_hf.methods.base import Method
from nxm_hf.methods.scores import worthiest
from nxm_hf.patterns import Pattern
from nxm_hf.solvers.weight_ops import keep


@dataclass(frozen=True)
class DenseTraining(Method):
    """Leave the weight and its gradient alone; `finish` prunes to `pattern` by `scores`."""

    pattern: Pattern
    scores: str = "magnitude"

    def init(self, weight, clock):
        return {}

    def before_step(self, weight, state, clock):
        pass

    def after_step(self, weight, state, clock):
        pass

    def finish(self, weight, state, clock):
        mask = worthiest(weight, self.pattern, self.scores, clock)
        keep(weight, mask)
        return mask
