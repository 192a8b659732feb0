"""What a method is: what happens to one weight just before and just after each optimizer step."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from nxm_hf.methods.schedules import Clock

State = dict[str, Tensor]
NO_CHANGE = torch.tensor([0, 0, 1])  # what `moved` says before there is a second mask
VERBS = ("init", "before_step", "after_step", "finish")


class Method(ABC):
    """A bracket around `optimizer.step()`, in four verbs on one weight of shape [out, in].

    Outside the bracket `weight` is what the model computes with; inside it is what the optimizer trains. All that a
    method remembers of a weight is in its `State`, a dict of tensors, so that it saves and loads with the checkpoint.
    Two names in it mean the same everywhere: `dense` is what the optimizer trains, where that is not `weight` itself,
    and `moved` says how the mask changed when it was last solved.

    The clock counts steps done: `before_step` at step t, then `after_step` at step t + 1. Verbs run without autograd.
    """

    edits_moments = False  # whether it sets what the optimizer remembers of single entries to zero

    @classmethod
    def __subclasshook__(cls, other):
        # Whoever has the four verbs is a method: a user's own object needs nothing of ours.
        return (cls is Method and all(callable(getattr(other, verb, None)) for verb in VERBS)) or NotImplemented

    @abstractmethod
    def init(self, weight: Tensor, clock: Clock) -> State:
        """Begin: make the state, and leave in `weight` what the first forward pass is to use."""

    @abstractmethod
    def before_step(self, weight: Tensor, state: State, clock: Clock) -> None:
        """Edit `weight` and `weight.grad` (None where there is no gradient) in place, before the optimizer steps."""

    @abstractmethod
    def after_step(self, weight: Tensor, state: State, clock: Clock) -> None:
        """Edit `weight` and `state` in place, just after the optimizer stepped."""

    @abstractmethod
    def finish(self, weight: Tensor, state: State, clock: Clock) -> Tensor | None:
        """Leave in `weight` a tensor that holds the pattern, and `state` as it is. May return the mask it used."""


def restore_dense(weight: Tensor, state: State) -> None:
    """Put back into `weight` what the optimizer trains."""
    if "dense" in state:
        weight.copy_(state["dense"])


def pruned_part(weight: Tensor, mask: Tensor) -> Tensor:
    """The weight where the mask prunes, zero elsewhere."""
    return weight * (~mask).view(torch.uint8)


def factors(mask: Tensor, pruned: float, like: Tensor) -> Tensor:
    """Exactly 1 where kept and `pruned` elsewhere."""
    if pruned <= 1:
        return mask.to(like.dtype).clamp_(min=pruned)
    return (~mask).to(like.dtype).mul_(pruned).clamp_(min=1)
