"""Methods around a method: one hides from it what is known of the optimizer's step, the other notes what it is told."""

from dataclasses import dataclass, replace
from typing import Any

from nxm_hf.methods import Method


@dataclass(frozen=True)
class Around(Method):
    """Do as a method does, with another clock."""

    method: Method

    def _clock(self, clock):
        return clock

    def init(self, weight, clock):
        return self.method.init(weight, self._clock(clock))

    def before_step(self, weight, state, clock):
        self.method.before_step(weight, state, self._clock(clock))

    def after_step(self, weight, state, clock):
        self.method.after_step(weight, state, self._clock(clock))

    def finish(self, weight, state, clock):
        return self.method.finish(weight, state, self._clock(clock))

    @property
    def edits_moments(self):
        return self.method.edits_moments


@dataclass(frozen=True)
class Blind(Around):
    """Nothing is known of the step, so every pass over the weights is made."""

    def _clock(self, clock):
        return replace(clock, weight_step=None)


@dataclass(frozen=True)
class Noting(Around):
    """Notes every answer that is not None, as (steps done, question, answer)."""

    notes: list

    def _clock(self, clock):
        return replace(clock, weight_step=_Noted(clock.weight_step, clock.step, self.notes))

    def answers(self, question: str, step: int) -> set[Any]:
        """Return the different answers to a question at a step, over all weights."""
        return {answer for when, what, answer in self.notes if (when, what) == (step, question)}


class _Noted:
    def __init__(self, view, step, notes):
        self._view, self._step, self._notes = view, step, notes

    def __getattr__(self, name):
        found = getattr(self._view, name)
        return self._note(name, found) if not callable(found) else lambda *words: self._note(name, found(*words))

    def _note(self, name, answer):
        if answer is not None:
            self._notes.append((self._step, name, answer))
        return answer
