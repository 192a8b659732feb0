"""Masked training: the model computes with a masked weight, and the optimizer trains the dense weight behind it."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nxm_hf.methods.base import NO_CHANGE, Method, Slot, State
from nxm_hf.methods.schedules import NEVER, Clock, Constant, Every, Schedule
from nxm_hf.methods.scores import as_mask, best_mask
from nxm_hf.patterns import NM, Pattern
from nxm_hf.solvers.entry_counts import holds_mask
from nxm_hf.solvers.masked_ops import (
    pull_pruned,
    remask_and_show,
    remask_and_store,
    scale_pruned,
    show_masked,
    store_dense,
)
from nxm_hf.solvers.weight_ops import keep, kept, mask_change


@dataclass(frozen=True)
class Masked(Method):
    """Masked training; eight schedules hold everything in which its papers differ.

        forward    W = D * (mask + gain * ~mask)
        gradient   g = G * (mask + grad_scale * ~mask) + pull * D * ~mask
        step       D = optimizer(D, g)
        after      D = D * (1 - shrink * ~mask);  if reset: D = D * mask

    D is the dense weight, W the weight that the model computes with, and G the gradient at W. `after` uses the mask of
    the step. Then, if `refresh`, the mask is solved again from D, by `scores`.

    - `grad_scale`: an adaptive optimizer divides gradients by their size, which would cancel this scale. Under such an
      optimizer it scales the optimizer's update of pruned weights instead.
    - `chain` multiplies the gradient of pruned weights by the gain, as the chain rule does, under any optimizer.
    - `freeze`: once it is true, there is no D any more. Pruned weights are zero and get no gradient, and a refresh
      chooses among the weights that W still holds.
    - `clear` names the optimizer's moments ("none", "first", "both") that are set to zero: those of pruned weights at
      a reset, and those of entries whose mask changes once frozen.
    - When a mask is frozen that is never solved again, the optimizer forgets its moments of pruned weights, if kept
      weights do not depend on them. Steps that follow then leave pruned weights at zero without a pass over them.
    """

    pattern: Schedule[Pattern]
    refresh: Schedule[bool] = Every(1)
    gain: Schedule[float] = Constant(0.0)
    grad_scale: Schedule[float] = Constant(1.0)
    pull: Schedule[float] = Constant(0.0)
    shrink: Schedule[float] = Constant(0.0)
    reset: Schedule[bool] = NEVER
    freeze: Schedule[bool] = NEVER
    chain: bool = False
    clear: str = "none"
    scores: str = "magnitude"

    @property
    def edits_moments(self) -> bool:
        return self.clear != "none"

    def init(self, weight: Tensor, clock: Clock) -> State:
        return self.begin(weight, self._solve(weight, clock), clock)

    def begin(self, weight: Tensor, mask: Tensor, clock: Clock) -> State:
        """Begin as `init` does, with a given mask.

        Args:
            weight: The dense weight; edited in place.
            mask: True where an entry is kept.
            clock: The clock at the first step of the method.

        Returns:
            The state of the method for this weight.
        """
        state = {Slot.MASK: mask, Slot.MASK_CHANGE: NO_CHANGE.clone()}
        if self.freeze(clock):
            self._freeze(weight, mask, clock)
        else:
            state[Slot.DENSE] = weight.clone()
            scale_pruned(weight, state[Slot.MASK], self.gain(clock))
        return state

    def before_step(self, weight: Tensor, state: State, clock: Clock) -> None:
        if Slot.DENSE in state:
            step, dense = clock.weight_step, state[Slot.DENSE]
            # `_edit_update` needs the dense weight before the step only to scale an update.
            trains_dense = step is not None and self.grad_scale == Constant(1.0) and step.train(dense)
            self._edit_gradient(weight.grad, state, clock)
            if not trains_dense:
                weight.copy_(dense)
        elif weight.grad is not None:
            step, mask = clock.weight_step, state[Slot.MASK]
            if step is not None and step.mask_gradient(mask):
                return
            has_no_nan = scale_pruned(weight.grad, mask)
            if step is not None:
                step.gradient_is_masked(mask, weight.grad, has_no_nan)

    def after_step(self, weight: Tensor, state: State, clock: Clock) -> None:
        if Slot.DENSE not in state:
            self._after_frozen_step(weight, state, clock)
            return
        dense = state[Slot.DENSE]
        trained = dense if clock.weight_step is not None and clock.weight_step.trains_dense else weight
        self._edit_update(trained, state, clock)
        if self.freeze(clock):
            self._refresh(trained, state, clock)
            if trained is dense:
                weight.copy_(dense)
            self._freeze(weight, state[Slot.MASK], clock)
            del state[Slot.DENSE]
        else:
            self._show(weight, trained is dense, state, clock)

    def is_finished(self, weight: Tensor, state: State, clock: Clock) -> bool:
        pattern = self.pattern(_at_end(clock))
        if Slot.DENSE not in state and isinstance(pattern, NM):
            return holds_mask(weight, state[Slot.MASK], pattern.n, pattern.m)  # in one pass over both
        return self._has_final_mask(state, _at_end(clock)) and holds_mask(weight, state[Slot.MASK])

    def kept_at_finish(self, weight: Tensor, state: State, clock: Clock) -> tuple[Tensor, Tensor | Pattern]:
        end, dense = _at_end(clock), state.get(Slot.DENSE, weight)
        if self._has_final_mask(state, end):
            return dense, state[Slot.MASK]
        return dense, self.pattern(end) if self.scores == "magnitude" else self._solve(dense, end)

    def finish(self, weight: Tensor, state: State, clock: Clock) -> Tensor:
        dense, kept_entries = self.kept_at_finish(weight, state, clock)
        mask = as_mask(kept_entries, dense)
        kept(dense, mask, weight)
        return mask

    def _has_final_mask(self, state: State, end: Clock) -> bool:
        """Return True if the mask is frozen and holds the final pattern. In a dense turn of `acdc` it does not."""
        return Slot.DENSE not in state and not self.pattern(end).violations(state[Slot.MASK])

    def _after_frozen_step(self, weight: Tensor, state: State, clock: Clock) -> None:
        step, mask = clock.weight_step, state[Slot.MASK]
        if step is None or not step.leaves_zeros(mask):
            keep(weight, mask)  # momentum may have moved pruned weights
            if step is not None:
                step.zeros_are_set(mask)
        if self.refresh(clock):
            before = state[Slot.MASK]
            self._refresh(weight, state, clock)
            keep(weight, state[Slot.MASK])
            clock.clear_moments(before ^ state[Slot.MASK], self.clear)

    def _freeze(self, weight: Tensor, mask: Tensor, clock: Clock) -> None:
        keep(weight, mask)
        if clock.weight_step is not None and self.refresh == NEVER:  # pruned entries may come back at a refresh
            clock.weight_step.mask_is_final(mask)

    def _solve(self, weight: Tensor, clock: Clock) -> Tensor:
        return best_mask(weight, self.pattern(clock), self.scores, clock)

    def _refresh(self, weight: Tensor, state: State, clock: Clock) -> None:
        mask = self._solve(weight, clock)
        state[Slot.MASK_CHANGE] = mask_change(state[Slot.MASK], mask)
        state[Slot.MASK] = mask

    def _show(self, weight: Tensor, from_dense: bool, state: State, clock: Clock) -> None:
        """Turn what was trained into D and the weight of the forward pass, with a new mask if one is due."""
        dense, mask, gain = state[Slot.DENSE], state[Slot.MASK], self.gain(clock)
        trained, other = (dense, weight) if from_dense else (weight, dense)
        if self.refresh(clock) and self.scores == "magnitude":
            remask_and_write = remask_and_show if from_dense else remask_and_store
            state[Slot.MASK_CHANGE] = remask_and_write(trained, mask, other, self.pattern(clock), gain)
            return
        if self.refresh(clock):
            self._refresh(trained, state, clock)
        write = show_masked if from_dense else store_dense
        write(trained, state[Slot.MASK], other, gain)

    def _edit_gradient(self, grad: Tensor | None, state: State, clock: Clock) -> None:
        if grad is None:
            return
        scale, pull, mask = self.grad_scale(clock), self.pull(clock), state[Slot.MASK]
        if scale != 1 and not clock.adaptive:
            scale_pruned(grad, mask, scale)
        if self.chain:
            scale_pruned(grad, mask, self.gain(clock))
        if pull:
            step, factor = clock.weight_step, pull * clock.loss_scale
            if step is None or not step.pull_dense(mask, factor):
                pull_pruned(grad, mask, state[Slot.DENSE], factor)

    def _edit_update(self, weight: Tensor, state: State, clock: Clock) -> None:
        """Scale, shrink or reset pruned weights after the step; the state still holds the dense weight before it."""
        mask, dense = state[Slot.MASK], state[Slot.DENSE]
        scale, shrink = self.grad_scale(clock), self.shrink(clock)
        if scale != 1 and clock.adaptive:
            weight.copy_(torch.where(mask, weight, torch.lerp(dense, weight, scale)))
        if shrink:
            pull_pruned(weight, mask, weight, -shrink)
        if self.reset(clock):
            keep(weight, mask)
            clock.clear_moments(~mask, self.clear)


def _at_end(clock: Clock) -> Clock:
    """Return the clock of the last step: the pattern that is due then is final, whichever holds now."""
    return replace(clock, step=clock.total)
