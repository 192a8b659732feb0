"""Phases: a method between a dense warm-up and a last stretch with its mask frozen."""

from dataclasses import dataclass, replace

import torch

from nxm_hf.methods.base import Method, State
from nxm_hf.methods.dense import DenseTraining
from nxm_hf.methods.masked import Masked
from nxm_hf.methods.schedules import ALWAYS, NEVER, Clock, Constant
from nxm_hf.patterns import Pattern

PHASES = ("warmup", "recipe", "settle")


@dataclass(frozen=True)
class Phases(Method):
    """Of T steps, the first a = round(warmup * T) are dense, and from e = T - round(settle * T) the mask is frozen.

    `method` sees a clock of its own over [a, e). The hand-over to the frozen mask is `method.finish`: it keeps the
    mask of step e. The phase stands in the state, so that a run resumed with another T never goes back a phase.
    """

    method: Method
    pattern: Pattern
    warmup: float = 0.0
    settle: float = 0.0

    @property
    def edits_moments(self) -> bool:
        return getattr(self.method, "edits_moments", False)

    def init(self, weight, clock):
        phase = self._due(clock)
        return self._begin(phase, weight, clock)

    def before_step(self, weight, state, clock):
        method, clock = self._now(state, clock)
        method.before_step(weight, state, clock)

    def after_step(self, weight, state, clock):
        phase, due = int(state["phase"]), self._due(clock)
        method, inner = self._now(state, clock)
        method.after_step(weight, state, inner)
        if due > phase:
            mask = None if phase == 0 else method.finish(weight, state, inner)
            state_of_next = self._begin(due, weight, clock)
            if mask is not None:
                state_of_next["mask"] = mask
            state.clear()
            state.update(state_of_next)

    def finish(self, weight, state, clock):
        method, clock = self._now(state, clock)
        return method.finish(weight, state, clock)

    def enters(self, phase: str, state: State | None, clock: Clock) -> bool:
        """Whether this phase, or one after it, is about to begin for a weight; it has no state before the first."""
        before = -1 if state is None else int(state["phase"])
        return before < PHASES.index(phase) <= self._due(clock)

    def window(self, clock: Clock) -> tuple[int, int]:
        """The steps a and e between which `method` acts."""
        return round(self.warmup * clock.total), clock.total - round(self.settle * clock.total)

    def _begin(self, phase, weight, clock):
        method, clock = self._of(phase, clock)
        return {**method.init(weight, clock), "phase": torch.tensor(phase)}

    def _now(self, state, clock):
        return self._of(int(state["phase"]), clock)

    def _of(self, phase: int, clock: Clock) -> tuple[Method, Clock]:
        """The method of a phase, and its own clock."""
        if phase == 0:
            return DenseTraining(self.pattern, getattr(self.method, "scores", "magnitude")), clock
        if phase == 2:
            return Masked(Constant(self.pattern), refresh=NEVER, freeze=ALWAYS), clock
        begin, end = self.window(clock)
        inner = replace(clock, step=clock.step - begin, since=clock.last - begin, total=max(end - begin, 1))
        return self.method, inner

    def _due(self, clock: Clock) -> int:
        begin, end = self.window(clock)
        return 0 if clock.step < begin else 1 if clock.step < end or end >= clock.total else 2
