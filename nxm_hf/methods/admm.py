"""ADMM: train the dense weight, and pull it ever more towards a sparse one."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nxm_hf.methods.base import NO_CHANGE, Method, Slot, State
from nxm_hf.methods.schedules import Clock, Evenly, EveryEpoch, PeriodicSchedule
from nxm_hf.methods.scores import nearest_mask
from nxm_hf.patterns import Pattern
from nxm_hf.solvers.weight_ops import admm_update, keep

PULL_OVER_GRADIENT = 0.003  # the ratio of norms that a measured rho aims at


@dataclass(frozen=True)
class ADMM(Method):
    """The alternating direction method of multipliers: minimise loss(W) subject to W = Z, with Z sparse.

        each step     W = optimizer(W, G + rho * (W - Z + U))             coupled
                      W = optimizer(W - contraction/K * (W - Z + U), G)   decoupled, K steps to an update
        each update   Z = project(W + U),  U = U + W - Z

    U is the dual variable, the running sum of W - Z. Z and U are nowhere both non-zero, so one tensor R = Z - U holds
    both. With V = W + U and its nearest mask m, R = V where m keeps and R = -V elsewhere. The nearest mask of R is m
    again. Without the dual, U = 0 and R = Z.

    - `start` is R before the first update: "A" R = W, without any pull; "B" R = project(W); "C" an update at step 0.
    - `rho` None is measured once, at the first step with a gradient. There the norm of the pull becomes
      `PULL_OVER_GRADIENT` times the norm of the loss's gradient.
    - `scores` choose what `finish` keeps: the largest sum of their squares. The projections of the updates use the
      squares of the weight itself.
    """

    pattern: Pattern
    rho: float | None = None
    contraction: float = 1.0
    penalty: str = "coupled"
    update: PeriodicSchedule = Evenly(80)
    start: str = "C"
    dual: bool = True
    scores: str = "magnitude"

    def init(self, weight: Tensor, clock: Clock) -> State:
        if isinstance(self.update, EveryEpoch):
            self.update.interval(clock)  # raises now, not at the first step, if the length of an epoch is unknown
        state = {
            Slot.R: torch.empty_like(weight),
            Slot.UPDATES: torch.tensor(0),
            Slot.MASK_CHANGE: NO_CHANGE.clone(),
        }
        if self.penalty == "coupled" and self.rho is None:
            state[Slot.RHO] = _unmeasured_rho()
        if self.start == "C":
            self._update(weight, state)
        else:
            state[Slot.R].copy_(weight if self.start == "A" else self.pattern.project(weight))
        return state

    def before_step(self, weight: Tensor, state: State, clock: Clock) -> None:
        if weight.grad is None:
            return
        if self.penalty == "coupled":
            pull = weight.detach() - state[Slot.R]
            weight.grad.add_(pull, alpha=self._rho(pull, weight.grad, state, clock) * clock.loss_scale)
        else:
            weight.lerp_(state[Slot.R], min(self.contraction / self.update.interval(clock), 1.0))

    def after_step(self, weight: Tensor, state: State, clock: Clock) -> None:
        if self.update(clock):
            self._update(weight, state)

    def finish(self, weight: Tensor, state: State, clock: Clock) -> Tensor:
        mask = nearest_mask(weight, self.pattern, self.scores, clock)
        keep(weight, mask)
        return mask

    def _update(self, weight: Tensor, state: State) -> None:
        """Project and update the dual variable, both in R and in place."""
        first = bool(state[Slot.UPDATES] == 0)
        change = admm_update(weight.detach(), state[Slot.R], self.pattern, first, self.dual)
        state[Slot.UPDATES] += 1
        if change is not None:
            state[Slot.MASK_CHANGE] = change

    def _rho(self, pull: Tensor, grad: Tensor, state: State, clock: Clock) -> float:
        """Return the strength of the penalty, and measure it first if it is not known yet."""
        if self.rho is not None:
            return self.rho
        state.setdefault(Slot.RHO, _unmeasured_rho())  # a state saved with other settings has none
        if state[Slot.RHO] == 0:
            pull_norm, grad_norm = clock.norms(pull, grad)
            grad_norm = grad_norm / clock.loss_scale
            if pull_norm > 0 and grad_norm > 0:
                state[Slot.RHO] = (PULL_OVER_GRADIENT * grad_norm / pull_norm).cpu()
        return state[Slot.RHO].item()


def _unmeasured_rho() -> Tensor:
    return torch.zeros((), dtype=torch.float64)
