"""By data: what a recipe has `nxm_hf.prune` do to the model, and at which point of the training."""

from dataclasses import dataclass

from nxm_hf import oneshot

BY_DATA = tuple(name for name in oneshot.names() if name != "magnitude")


@dataclass(frozen=True)
class PrunedBy:
    """The method, and the phase that begins with what it has made of the weights.

    Where it is no `must`, a training that has no rows to show it goes by the recipe's own scores instead.
    """

    method: str
    phase: str
    must: bool = True
