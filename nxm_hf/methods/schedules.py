"""Schedules: values that change as training goes on. A schedule is any function of a `Clock`."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Clock:
    """Where training stands, and what its optimizer step is like.

    Args:
        step: optimizer steps done.
        total: optimizer steps of the whole training.
        since: steps done when the method last acted; `step - 1` unless a step was skipped (fp16 overflow).
        epoch: optimizer steps of one epoch, where known.
        adaptive: whether the optimizer divides gradients by their size, as Adam does and plain SGD does not.
        loss_scale: what gradients are still multiplied by (a fused optimizer under a `GradScaler`).
        moments: what the optimizer remembers of this weight's gradients.
        seed: a number of this run and this weight, for what a method chooses by chance.
    """

    step: int
    total: int
    since: int | None = None
    epoch: int | None = None
    adaptive: bool = False
    loss_scale: float = 1.0
    moments: Any = field(default=None, compare=False, repr=False)
    seed: int = 0

    @property
    def last(self) -> int:
        """Steps done when the method last acted."""
        return self.step - 1 if self.since is None else self.since

    @property
    def progress(self) -> float:
        """The part of training that is done, 0 to 1."""
        return min(max(self.step, 0) / max(self.total, 1), 1.0)

    @property
    def squares(self) -> Any:
        """The optimizer's running mean of this weight's squared gradients, where it keeps one."""
        return None if self.moments is None else self.moments.squares

    def clear_moments(self, where: Any, which: str) -> None:
        """Set the optimizer's "first" or "both" moments of some entries to zero; "none" leaves them."""
        if which != "none" and self.moments is not None:
            self.moments.clear(where, which)

    def generator(self) -> torch.Generator:
        """Chance that is the same for the same seed and step, whatever else was drawn."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + self.step) % 2**63)


Schedule = Callable[[Clock], T]


@dataclass(frozen=True)
class Constant:
    """The same value throughout."""

    value: Any

    def __call__(self, clock: Clock) -> Any:
        return self.value


@dataclass(frozen=True)
class Every:
    """True at every `steps`-th step; after skipped steps, at the next one that is taken.

    >>> [Every(2)(Clock(step, 10)) for step in (1, 2, 3, 4)]
    [False, True, False, True]
    >>> Every(2)(Clock(5, 10, since=3))
    True
    """

    steps: int

    def __post_init__(self):
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"A number of steps must be a whole number of at least 1; got {self.steps!r}. Write 1.")

    def __call__(self, clock: Clock) -> bool:
        return clock.step // self.steps > clock.last // self.steps

    def interval(self, clock: Clock) -> float:
        """Steps from one event to the next."""
        return self.steps


@dataclass(frozen=True)
class EveryEpoch:
    """True at the end of each epoch."""

    def __call__(self, clock: Clock) -> bool:
        return Every(self.interval(clock))(clock)

    def interval(self, clock: Clock) -> int:
        """Steps of one epoch."""
        if clock.epoch is None:
            raise ValueError('"epoch" needs the steps of one epoch; give attach(..., steps_per_epoch=).')
        return clock.epoch


@dataclass(frozen=True)
class Evenly:
    """Events spread evenly over training, the last at its end: one in about `spacing` steps, at most `most`.

    >>> [step for step in range(1, 401) if Evenly(80)(Clock(step, 400))]
    [80, 160, 240, 320, 400]
    """

    spacing: int
    most: int = 50

    def count(self, clock: Clock) -> int:
        """How many events there are in all."""
        return min(max(round(clock.total / self.spacing), 1), self.most)

    def __call__(self, clock: Clock) -> bool:
        count, total = self.count(clock), max(clock.total, 1)
        return clock.step * count // total > clock.last * count // total

    def interval(self, clock: Clock) -> float:
        """Steps from one event to the next."""
        return max(clock.total, 1) / self.count(clock)


@dataclass(frozen=True)
class Decay:
    """A gain that falls from 1: by `rate` in each step (linear) or with the exponent -rate (exponential).

    Without a rate, a linear one reaches 0 at the end and an exponential one e^-5.

    >>> [Decay("linear")(Clock(step, 4)) for step in range(5)]
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """

    kind: str
    rate: float | None = None

    def __call__(self, clock: Clock) -> float:
        if self.kind == "linear":
            fallen = clock.progress if self.rate is None else self.rate * max(clock.step, 0)
            return max(1.0 - fallen, 0.0)
        return math.exp(-5 * clock.progress if self.rate is None else -self.rate * max(clock.step, 0))


@dataclass(frozen=True)
class Frames:
    """A value for each of several equal stretches of training, as a function of the clock alone.

    >>> [Frames(("a", "b"))(Clock(step, 4)) for step in range(5)]
    ['a', 'a', 'b', 'b', 'b']
    """

    values: tuple

    def __call__(self, clock: Clock) -> Any:
        count = len(self.values)
        return self.values[min(max(clock.step, 0) * count // max(clock.total, 1), count - 1)]


ALWAYS, NEVER = Constant(True), Constant(False)
