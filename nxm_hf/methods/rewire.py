"""Rewiring training: the weight itself is sparse, and from time to time some of its connections are replaced."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nxm_hf.methods.base import NO_CHANGE, Method, Slot, State
from nxm_hf.methods.schedules import Clock
from nxm_hf.patterns import Pattern
from nxm_hf.solvers.base import refuse_nan
from nxm_hf.solvers.entry_counts import holds_mask
from nxm_hf.solvers.masked_ops import scale_pruned
from nxm_hf.solvers.weight_ops import keep, mask_change


@dataclass(frozen=True)
class Rewiring(Method):
    """Training of a sparse weight that replaces connections on every `every`-th step, instead of training them.

        dropped   the share `fraction(t)` of kept weights with the smallest |W|
        grown     of all entries not kept then, those with the highest score: |G| ("gradient") or chance ("random")

    fraction(t) falls from `fraction` to 0, by a cosine or a line. What can grow depends on the pattern. Of the masks
    that hold it, the new mask keeps every entry that was not dropped and the highest scores besides. A dropped weight
    that grows at once keeps its value. Other grown weights start at zero, with the optimizer's moments at zero too.
    """

    pattern: Pattern
    grow: str = "gradient"
    every: int = 100
    fraction: float = 0.3
    schedule: str = "cosine"

    @property
    def edits_moments(self) -> bool:
        return True

    def init(self, weight: Tensor, clock: Clock) -> State:
        state = {Slot.MASK: self.pattern.largest(weight), Slot.MASK_CHANGE: NO_CHANGE.clone()}
        keep(weight, state[Slot.MASK])
        return state

    def before_step(self, weight: Tensor, state: State, clock: Clock) -> None:
        if weight.grad is None:
            return
        if self._rewires_next(clock):
            self._rewire(weight, weight.grad, state, clock)
            weight.grad = None  # an optimizer skips a weight without a gradient
        elif clock.weight_step is None or not clock.weight_step.mask_gradient(state[Slot.MASK]):
            scale_pruned(weight.grad, state[Slot.MASK])

    def after_step(self, weight: Tensor, state: State, clock: Clock) -> None:
        if clock.weight_step is None or not clock.weight_step.leaves_zeros(state[Slot.MASK]):
            keep(weight, state[Slot.MASK])

    def is_finished(self, weight: Tensor, state: State, clock: Clock) -> bool:
        return holds_mask(weight, state[Slot.MASK])

    def finish(self, weight: Tensor, state: State, clock: Clock) -> Tensor:
        keep(weight, state[Slot.MASK])
        return state[Slot.MASK]

    def _rewires_next(self, clock: Clock) -> bool:
        """Return True if the step that is about to be taken rewires instead of training."""
        return clock.step < clock.total and (clock.step + 1) // self.every > clock.last // self.every

    def _rewire(self, weight: Tensor, grad: Tensor, state: State, clock: Clock) -> None:
        before, fraction = state[Slot.MASK], self._fraction(clock)
        kept = clock.count(before)
        refuse_nan(weight)
        magnitudes = weight.abs().masked_fill(~before, -1.0)
        stays = clock.keep_highest(magnitudes, kept - int(fraction * kept))
        # Scores are at most 1, so an infinite score keeps every entry that stays.
        mask = self.pattern.mask(self._growth_scores(grad, clock).masked_fill(stays, torch.inf))
        clock.clear_moments(mask & ~before, "both")
        state[Slot.MASK_CHANGE] = mask_change(before, mask)
        state[Slot.MASK] = mask

    def _growth_scores(self, grad: Tensor, clock: Clock) -> Tensor:
        """Return scores between 0 and 1."""
        if self.grow == "random":
            return clock.random_like(grad)
        magnitudes = grad.abs()
        return magnitudes / clock.largest(magnitudes).clamp_min(torch.finfo(magnitudes.dtype).tiny)

    def _fraction(self, clock: Clock) -> float:
        """Return the share of kept weights that is dropped at this step."""
        left = (1 + math.cos(math.pi * clock.progress)) / 2 if self.schedule == "cosine" else 1 - clock.progress
        return self.fraction * left
