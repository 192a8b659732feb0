"""Masked training: the forward pass sees a masked weight, the optimizer trains the dense one behind it."""

from dataclasses import dataclass, replace

import torch

from nxm_hf.methods.base import NO_CHANGE, Method, factors, pruned_part, restore_dense
from nxm_hf.methods.schedules import NEVER, Constant, Every, Schedule
from nxm_hf.methods.scores import worthiest
from nxm_hf.patterns import Pattern
from nxm_hf.solvers.weight_ops import keep, moved, remask


@dataclass(frozen=True)
class Masked(Method):
    """Eight schedules say all that masked-training papers differ in.

        forward    W = D * (mask + gain * ~mask)
        gradient   g = G * (mask + grad_scale * ~mask) + pull * D * ~mask
        step       D = optimizer(D, g)
        after      D = D * (1 - shrink * ~mask);  where reset: D = D * mask

    with D the dense weight, W what the model computes with, and G the gradient at W. `after` uses the mask of the
    step; then, where `refresh`, the mask is solved anew from D, by `scores`. An optimizer that divides by the size of
    gradients hides `grad_scale`, so under such a one it scales the optimizer's update of pruned weights instead;
    `chain` multiplies their gradient by the gain, as the chain rule has it, under any optimizer. Once `freeze` is true
    there is no D any more: pruned weights are zero and get no gradient, and a refresh chooses among what W still holds.
    `clear` names the moments ("none", "first", "both") of the optimizer that a reset, or a mask that changes once
    frozen, sets to zero.
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

    def init(self, weight, clock):
        mask = self._solve(weight, clock)
        state = {"mask": mask, "moved": NO_CHANGE.clone()}
        if self.freeze(clock):
            keep(weight, state["mask"])
        else:
            state["dense"] = weight.detach().clone()
            self._enter(weight, state, clock)
        return state

    def before_step(self, weight, state, clock):
        if "dense" in state:
            self._edit_gradient(weight.grad, state, clock)
            weight.copy_(state["dense"])
        elif weight.grad is not None:
            weight.grad.mul_(state["mask"].view(torch.uint8))

    def after_step(self, weight, state, clock):
        if "dense" not in state:
            self._after_frozen_step(weight, state, clock)
            return
        self._edit_update(weight, state, clock)
        due, frozen = self.refresh(clock), self.freeze(clock)
        if due and not frozen and self.gain(clock) == 0 and self.scores == "magnitude":
            state["moved"] = remask(weight.detach(), state["mask"], state["dense"], self.pattern(clock))
            return
        if due or frozen:
            self._refresh(weight, state, clock)
        if frozen:
            keep(weight, state["mask"])
            del state["dense"]
        else:
            state["dense"].copy_(weight)
            self._enter(weight, state, clock)

    def finish(self, weight, state, clock):
        restore_dense(weight, state)
        end = replace(clock, step=clock.total)
        frozen = "dense" not in state and self.pattern(end).violations(state["mask"]) == 0
        mask = state["mask"] if frozen else self._solve(weight, end)  # to the final pattern, whatever holds now
        keep(weight, mask)
        return mask

    def _after_frozen_step(self, weight, state, clock):
        keep(weight, state["mask"])
        if self.refresh(clock):
            before = state["mask"]
            self._refresh(weight, state, clock)
            keep(weight, state["mask"])
            clock.clear_moments(before ^ state["mask"], self.clear)

    def _solve(self, weight, clock):
        return worthiest(weight, self.pattern(clock), self.scores, clock)

    def _refresh(self, weight, state, clock):
        mask = self._solve(weight, clock)
        state["moved"] = moved(state["mask"], mask)
        state["mask"] = mask

    def _enter(self, weight, state, clock):
        """Make of the dense `weight` what the forward pass uses of it."""
        gain = self.gain(clock)
        if gain == 0:
            weight.mul_(state["mask"].view(torch.uint8))
        elif gain != 1:
            weight.mul_(factors(state["mask"], gain, weight))

    def _edit_gradient(self, grad, state, clock):
        scale, pull = self.grad_scale(clock), self.pull(clock)
        if grad is None:
            return
        if scale != 1 and not clock.adaptive:
            grad.mul_(factors(state["mask"], scale, grad))
        if self.chain:
            grad.mul_(factors(state["mask"], self.gain(clock), grad))
        if pull:
            grad.add_(pruned_part(state["dense"], state["mask"]), alpha=pull * clock.loss_scale)

    def _edit_update(self, weight, state, clock):
        """What is done to pruned weights after the step; `state["dense"]` is still the weight before it."""
        mask, dense = state["mask"], state["dense"]
        scale, shrink = self.grad_scale(clock), self.shrink(clock)
        if scale != 1 and clock.adaptive:
            weight.copy_(torch.where(mask, weight, torch.lerp(dense, weight, scale)))
        if shrink:
            weight.sub_(pruned_part(weight, mask), alpha=shrink)
        if self.reset(clock):
            keep(weight, mask)
            clock.clear_moments(~mask, self.clear)
