"""Phases: a method between a dense warm-up and a last stretch with a frozen mask."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nxm_hf.methods.base import Measurement, Method, Slot, State
from nxm_hf.methods.dense import DenseTraining
from nxm_hf.methods.masked import Masked
from nxm_hf.methods.schedules import ALWAYS, NEVER, Clock, Constant
from nxm_hf.patterns import Pattern

PHASES = ("warmup", "recipe", "settle")
_WARMUP, _RECIPE, _SETTLE = range(3)


@dataclass(frozen=True)
class Phases(Method):
    """A method with a dense phase before it and a frozen-mask phase after it.

    Of T steps, the first a = round(warmup * T) are dense. From step e = T - round(settle * T) - early on, the mask is
    frozen. `early` counts only if there is a frozen-mask phase. `method` sees its own clock over [a, e). Its `finish`
    at step e makes the mask that is frozen. The phase is part of the state, so that a run that is resumed with another
    T never goes back by a phase.
    """

    method: Method
    pattern: Pattern
    warmup: float = 0.0
    settle: float = 0.0
    early: int = 0

    @property
    def edits_moments(self) -> bool:
        return getattr(self.method, "edits_moments", False)  # a user's own object has the four verbs only

    def init(self, weight: Tensor, clock: Clock) -> State:
        return self._begin(self.phase_at(clock), weight, clock)

    def measure(self, weight: Tensor, state: State, clock: Clock) -> Measurement:
        method, own_clock = self._current(state, clock)
        yield from method.measure(weight, state, own_clock)

    def before_step(self, weight: Tensor, state: State, clock: Clock) -> None:
        method, own_clock = self._current(state, clock)
        method.before_step(weight, state, own_clock)

    def after_step(self, weight: Tensor, state: State, clock: Clock) -> None:
        method, own_clock = self._current(state, clock)
        method.after_step(weight, state, own_clock)
        phase, next_phase = int(state[Slot.PHASE]), self.phase_at(clock)
        if next_phase <= phase:
            return
        # The warm-up hands over a dense weight, so it is not finished.
        mask = None if phase == _WARMUP else method.finish(weight, state, own_clock)
        next_state = self._begin(next_phase, weight, clock, mask)
        state.clear()
        state.update(next_state)

    def is_finished(self, weight: Tensor, state: State, clock: Clock) -> bool:
        method, own_clock = self._current(state, clock)
        return _tells_of_finish(type(method), "is_finished") and method.is_finished(weight, state, own_clock)

    def kept_at_finish(self, weight: Tensor, state: State, clock: Clock) -> tuple[Tensor, Tensor | Pattern] | None:
        method, own_clock = self._current(state, clock)
        told = _tells_of_finish(type(method), "kept_at_finish")
        return method.kept_at_finish(weight, state, own_clock) if told else None

    def finish(self, weight: Tensor, state: State, clock: Clock) -> Tensor | None:
        method, own_clock = self._current(state, clock)
        return method.finish(weight, state, own_clock)

    def is_entering(self, phase: str, state: State | None, clock: Clock) -> bool:
        """Return True if this phase, or a later one, is about to begin for a weight.

        Args:
            phase: A name in `PHASES`.
            state: The state of the weight, or None before the first step.
            clock: The clock at the steps done.
        """
        current = -1 if state is None else int(state[Slot.PHASE])
        return current < PHASES.index(phase) <= self.phase_at(clock)

    def phase_at(self, clock: Clock) -> int:
        """Return the index in `PHASES` of the phase at this step.

        Args:
            clock: The clock at the steps done, and the length of training.
        """
        begin, end = self.window(clock)
        if clock.step < begin:
            return _WARMUP
        if clock.step < end or end >= clock.total:  # without a settle phase, `method` keeps the last step too
            return _RECIPE
        return _SETTLE

    def window(self, clock: Clock) -> tuple[int, int]:
        """Return the steps a and e between which `method` acts.

        Args:
            clock: A clock that knows the length of training.
        """
        begin, end = round(self.warmup * clock.total), clock.total - round(self.settle * clock.total)
        if self.early and end < clock.total:
            end = max(end - self.early, min(begin + 1, end))  # at least one step is the method's
        return begin, end

    def _begin(self, phase: int, weight: Tensor, clock: Clock, mask: Tensor | None = None) -> State:
        method, own_clock = self._method_of(phase, clock)
        if mask is not None and isinstance(method, Masked):
            # Solved again from the weight, the mask might prefer a pruned zero to a kept weight that is zero.
            state = method.begin(weight, mask, own_clock)
        else:
            state = method.init(weight, own_clock)
        return {**state, Slot.PHASE: torch.tensor(phase)}

    def _current(self, state: State, clock: Clock) -> tuple[Method, Clock]:
        return self._method_of(int(state[Slot.PHASE]), clock)

    def _method_of(self, phase: int, clock: Clock) -> tuple[Method, Clock]:
        """Return the method of a phase and its own clock."""
        if phase == _WARMUP:
            return DenseTraining(self.pattern, getattr(self.method, "scores", "magnitude")), clock
        if phase == _SETTLE:
            return Masked(Constant(self.pattern), refresh=NEVER, freeze=ALWAYS), clock
        begin, end = self.window(clock)
        own_clock = clock.but(step=clock.step - begin, since=clock.last - begin, total=max(end - begin, 1))
        return self.method, own_clock


def _tells_of_finish(kind: type, name: str) -> bool:
    """Return True if one class defines `finish` and the method of this name, and no subclass overrides one of them."""
    names = {"finish", name}
    return next(names <= vars(base).keys() for base in kind.__mro__ if names & vars(base).keys())
