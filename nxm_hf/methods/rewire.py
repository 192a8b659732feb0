"""Rewiring training: the weight itself is sparse, and now and then some of its connections are put elsewhere."""

import math
from dataclasses import dataclass

import torch

from nxm_hf.methods.base import NO_CHANGE, Method
from nxm_hf.patterns import Pattern
from nxm_hf.solvers.unstructured_threshold import keep_highest
from nxm_hf.solvers.weight_ops import keep, moved, refuse_nan


@dataclass(frozen=True)
class Rewiring(Method):
    """On every `every`-th step, instead of training, drop the smallest kept weights and grow as many elsewhere.

        dropped   the share `fraction(t)` of kept weights with the smallest |W|
        grown     of all that is not kept then, what scores highest: |G| ("gradient") or chance ("random")

    with fraction(t) falling from `fraction` to 0, by a cosine or a line. What is grown depends on the pattern: of the
    masks that hold it, the one that keeps all that was not dropped and the highest scores beside. A dropped weight
    that grows at once keeps its value; others start at zero, with the optimizer's moments at zero too.
    """

    pattern: Pattern
    grow: str = "gradient"
    every: int = 100
    fraction: float = 0.3
    schedule: str = "cosine"

    edits_moments = True

    def init(self, weight, clock):
        mask = self.pattern.largest(weight)
        state = {"mask": mask, "moved": NO_CHANGE.clone()}
        keep(weight, state["mask"])
        return state

    def before_step(self, weight, state, clock):
        if weight.grad is None:
            return
        if self._due(clock):
            self._rewire(weight, state, clock)
            weight.grad = None  # an optimizer passes over a weight without a gradient
        else:
            weight.grad.mul_(state["mask"].view(torch.uint8))

    def after_step(self, weight, state, clock):
        keep(weight, state["mask"])

    def finish(self, weight, state, clock):
        keep(weight, state["mask"])
        return state["mask"]

    def _due(self, clock):
        """Whether the step that is about to be taken is one that rewires."""
        return clock.step < clock.total and (clock.step + 1) // self.every > clock.last // self.every

    def _rewire(self, weight, state, clock):
        before, fraction = state["mask"], self._fraction(clock)
        ones = int(before.count_nonzero())
        refuse_nan(weight.detach())
        values = weight.detach().abs().masked_fill(~before, -1.0)
        stay = keep_highest(values.flatten(), ones - int(fraction * ones)).view(before.shape)
        mask = self.pattern.mask(self._growth(weight, clock).masked_fill(stay, torch.inf))
        clock.clear_moments(mask & ~before, "both")
        state["moved"] = moved(before, mask)
        state["mask"] = mask

    def _growth(self, weight, clock):
        """Scores between 0 and 1."""
        if self.grow == "random":
            return torch.rand(weight.shape, generator=clock.generator()).to(weight)
        gradient = weight.grad.abs()
        return gradient / gradient.max().clamp_min(torch.finfo(gradient.dtype).tiny)

    def _fraction(self, clock):
        left = (1 + math.cos(math.pi * clock.progress)) / 2 if self.schedule == "cosine" else 1 - clock.progress
        return self.fraction * left
