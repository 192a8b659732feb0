"""ADMM: train the dense weight, and pull it ever more towards a sparse one."""

from dataclasses import dataclass

import torch

from nxm_hf.methods.base import NO_CHANGE, Method
from nxm_hf.methods.schedules import Evenly, EveryEpoch, Schedule
from nxm_hf.methods.scores import worthiest
from nxm_hf.patterns import Pattern
from nxm_hf.solvers.weight_ops import admm_update, keep


@dataclass(frozen=True)
class ADMM(Method):
    """Minimise loss(W) subject to W = Z, Z sparse, with U the running disagreement.

        each step     W = optimizer(W, G + rho * (W - Z + U))             coupled
                      W = optimizer(W - contraction/K * (W - Z + U), G)   decoupled, K steps to an update
        each update   Z = project(W + U),  U = U + W - Z

    Z and U are nowhere both non-zero, so one tensor R = Z - U holds them: with V = W + U and its mask m,
    R = V where m, -V elsewhere; and the mask of |R| is m again. Without the dual U = 0 and R = Z.

    `start` says what R is before the first update: "A" R = W, no pull yet; "B" R = project(W);
    "C" an update at step 0. `rho` None is measured: such that, at the first step with a gradient, the pull is
    `PULL_OVER_GRADIENT` times as large as the gradient of the loss (root mean square over the weight). `scores` says
    what is kept when the weight is pruned for good; the projections of each update go by magnitude.
    """

    pattern: Pattern
    rho: float | None = None
    contraction: float = 1.0
    penalty: str = "coupled"
    update: Schedule[bool] = Evenly(80)
    start: str = "C"
    dual: bool = True
    scores: str = "magnitude"

    def init(self, weight, clock):
        if isinstance(self.update, EveryEpoch):
            self.update.interval(clock)  # unknown, it is an error now and not at the first step
        state = {"r": torch.empty_like(weight), "updates": torch.tensor(0), "moved": NO_CHANGE.clone()}
        if self.penalty == "coupled" and self.rho is None:
            state["rho"] = _unmeasured()
        if self.start == "C":
            self._update(weight, state)
        else:
            state["r"].copy_(weight if self.start == "A" else self.pattern.project(weight))
        return state

    def before_step(self, weight, state, clock):
        if weight.grad is None:
            return
        if self.penalty == "coupled":
            pull = weight.detach() - state["r"]
            weight.grad.add_(pull, alpha=self._rho(pull, weight.grad, state, clock) * clock.loss_scale)
        else:
            weight.lerp_(state["r"], min(self.contraction / self.update.interval(clock), 1.0))

    def after_step(self, weight, state, clock):
        if self.update(clock):
            self._update(weight, state)

    def finish(self, weight, state, clock):
        mask = worthiest(weight, self.pattern, self.scores, clock)
        keep(weight, mask)
        return mask

    def _update(self, weight, state):
        """The projection and the dual step, on R in place."""
        first = bool(state["updates"] == 0)
        moved = admm_update(weight.detach(), state["r"], self.pattern, first, self.dual)
        state["updates"] += 1
        if moved is not None:
            state["moved"] = moved

    def _rho(self, pull, grad, state, clock):
        if self.rho is not None:
            return self.rho
        state.setdefault("rho", _unmeasured())  # a state made with other settings has none
        if state["rho"] == 0:
            size, norm = pull.norm().double(), grad.norm().double() / clock.loss_scale
            if size > 0 and norm > 0:
                state["rho"] = (PULL_OVER_GRADIENT * norm / size).cpu()
        return state["rho"].item()


PULL_OVER_GRADIENT = 0.003


def _unmeasured():
    return torch.zeros((), dtype=torch.float64)
