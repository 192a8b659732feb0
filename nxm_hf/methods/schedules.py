"""Schedules: values that change as training goes on. A schedule is any function of a `Clock`."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from nxm_hf.solvers.unstructured_threshold import keep_highest

T = TypeVar("T")


class MomentEditor(Protocol):
    """Access to the moments that an optimizer keeps for one weight."""

    @property
    def squares(self) -> Tensor | None:
        """Return the running mean of the squared gradients, or None if there is none for each entry."""

    def clear(self, where: Tensor, which: str) -> None:
        """Set the "first" or "both" moments to zero where `where` is True."""


class WeightStep(Protocol):
    """The optimizer's step as one weight sees it."""

    def mask_gradient(self, mask: Tensor) -> bool:
        """Have the step mask the gradient and leave pruned entries at +0.0. Return False if the caller has to."""

    def gradient_is_masked(self, mask: Tensor, grad: Tensor, has_no_nan: bool) -> None:
        """Take note, before a step, that pruned entries of the gradient are zero, or NaN where they were infinite."""

    def leaves_zeros(self, mask: Tensor) -> bool:
        """Return True, after a step, if it has left pruned entries at +0.0. If not, they have to be set to zero."""

    def zeros_are_set(self, mask: Tensor) -> None:
        """Take note, after a step, that pruned entries were set to zero."""

    def mask_is_final(self, mask: Tensor) -> None:
        """Take note, between two steps, that no pruned entry will ever be kept again."""

    def train(self, dense: Tensor) -> bool:
        """Have the step train a dense weight, not this one. Return False if it has to be copied into this one."""

    def pull_dense(self, mask: Tensor, factor: float) -> bool:
        """Have the step pull the dense weight that it trains to zero where the mask prunes.

        Return False if the caller has to: then the step trains no dense weight, or it cannot pull.
        """

    @property
    def trains_dense(self) -> bool:
        """Return True, after a step, if it has trained the dense weight."""


class WholeWeight(Protocol):
    """Access to the whole of a weight that processes hold parts of. Every process calls each of these."""

    def total(self, numbers: Tensor) -> Tensor:
        """Add up numbers over the processes."""

    def largest(self, number: Tensor) -> Tensor:
        """Return the largest of the numbers of all processes."""

    def keep_highest(self, scores: Tensor, count: int) -> Tensor:
        """Return this process's part of the mask of the highest scores; of equal scores the first."""

    def random(self, generator: torch.Generator) -> Tensor:
        """Return this process's part of random numbers between 0 and 1."""


@dataclass(frozen=True)
class Clock:
    """The position in training, and the properties of the optimizer step there.

    Args:
        step: Optimizer steps done.
        total: Optimizer steps of the whole training.
        since: Steps done when the method last acted; `step - 1` unless a step was skipped (fp16 overflow).
        epoch: Optimizer steps of one epoch, where known.
        adaptive: True if the optimizer divides gradients by their size, as Adam does and plain SGD does not.
        loss_scale: The factor that gradients still carry (a fused optimizer under a `GradScaler`).
        moments: The optimizer's moments of this weight.
        seed: The seed of the random choices for this run and this weight.
        whole: Access to the whole of this weight, of which the method sees a part; None if it sees all of it.
        weight_step: The step as this weight sees it; None if nothing is known of it.
    """

    step: int
    total: int
    since: int | None = None
    epoch: int | None = None
    adaptive: bool = False
    loss_scale: float = 1.0
    moments: MomentEditor | None = field(default=None, compare=False, repr=False)
    seed: int = 0
    whole: WholeWeight | None = field(default=None, compare=False, repr=False)
    weight_step: WeightStep | None = field(default=None, compare=False, repr=False)

    def but(self, **changes: Any) -> "Clock":
        """Return this clock with other values of some fields, as `dataclasses.replace` does in a quarter of the time.

        Args:
            **changes: Fields and their values.
        """
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, **changes)
        return other

    @property
    def last(self) -> int:
        """Return the number of steps done when the method last acted."""
        return self.step - 1 if self.since is None else self.since

    @property
    def progress(self) -> float:
        """Return the fraction of training that is done, from 0 to 1."""
        return min(max(self.step, 0) / max(self.total, 1), 1.0)

    @property
    def squares(self) -> Tensor | None:
        """Return the optimizer's running mean of this weight's squared gradients, or None if it keeps none."""
        return None if self.moments is None else self.moments.squares

    def clear_moments(self, where: Tensor, which: str) -> None:
        """Set the optimizer's moments of some entries to zero.

        Args:
            where: True at the entries to clear.
            which: "first", "both" or "none"; "none" clears nothing.
        """
        if which != "none" and self.moments is not None:
            self.moments.clear(where, which)

    def count(self, mask: Tensor) -> int:
        """Return how many entries a mask of the whole weight keeps.

        Args:
            mask: The mask, with the shape of the weight.
        """
        kept = mask.count_nonzero()
        return int(kept if self.whole is None else self.whole.total(kept))

    def largest(self, tensor: Tensor) -> Tensor:
        """Return the largest entry, 0 or above, of the whole weight.

        Args:
            tensor: A tensor with the shape of the weight.
        """
        if self.whole is None:
            return tensor.max()
        return self.whole.largest(tensor.max() if tensor.numel() else tensor.new_zeros(()))

    def keep_highest(self, scores: Tensor, count: int) -> Tensor:
        """Return the mask of the highest scores of the whole weight; of equal scores the first.

        Args:
            scores: Scores with the shape of the weight.
            count: How many to keep.
        """
        if self.whole is None:
            return keep_highest(scores.flatten(), count).view(scores.shape)
        return self.whole.keep_highest(scores, count)

    def random_like(self, tensor: Tensor) -> Tensor:
        """Return random numbers between 0 and 1, which depend on the seed, the step and the place in the whole weight.

        Args:
            tensor: A tensor with the shape of the weight.
        """
        generator = self.generator()
        if self.whole is not None:
            return self.whole.random(generator).to(tensor)
        return torch.rand(tensor.shape, generator=generator, device="cpu").to(tensor)

    def generator(self) -> torch.Generator:
        """Return a random generator that depends on the seed and the step alone, not on earlier random numbers."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + self.step) % 2**63)


Schedule = Callable[[Clock], T]


class PeriodicSchedule(Protocol):
    """A schedule of events that also knows the number of steps between two of them."""

    def __call__(self, clock: Clock) -> bool:
        """Return True if an event happens at this step."""

    def interval(self, clock: Clock) -> float:
        """Return the number of steps from one event to the next."""


@dataclass(frozen=True)
class Constant(Generic[T]):
    """The same value at every step."""

    value: T

    def __call__(self, clock: Clock) -> T:
        return self.value


@dataclass(frozen=True)
class Every:
    """True at every `steps`-th step. If that step is skipped, the event happens at the next step that is taken.

    >>> [Every(2)(Clock(step, 10)) for step in (1, 2, 3, 4)]
    [False, True, False, True]
    >>> Every(2)(Clock(5, 10, since=3))
    True
    """

    steps: int

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"A number of steps must be a whole number of at least 1; got {self.steps!r}. Write 1.")

    def __call__(self, clock: Clock) -> bool:
        return clock.step // self.steps > clock.last // self.steps

    def interval(self, clock: Clock) -> float:
        """Return the number of steps from one event to the next."""
        return self.steps


@dataclass(frozen=True)
class EveryEpoch:
    """True at the end of each epoch."""

    def __call__(self, clock: Clock) -> bool:
        return Every(self.interval(clock))(clock)

    def interval(self, clock: Clock) -> int:
        """Return the number of steps of one epoch.

        Args:
            clock: A clock whose `epoch` is known.

        Raises:
            ValueError: If `clock.epoch` is None.
        """
        if clock.epoch is None:
            raise ValueError(
                'steps="epoch" needs the number of steps of one epoch. Write attach(..., steps_per_epoch=100).'
            )
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
        """Return the number of events of the whole training, whose length is `clock.total`."""
        return min(max(round(clock.total / self.spacing), 1), self.most)

    def __call__(self, clock: Clock) -> bool:
        count, total = self.count(clock), max(clock.total, 1)
        return clock.step * count // total > clock.last * count // total

    def interval(self, clock: Clock) -> float:
        """Return the number of steps from one event to the next."""
        return max(clock.total, 1) / self.count(clock)


@dataclass(frozen=True)
class Decay:
    """A gain that falls from 1: by `rate` in each step ("linear") or with the exponent -rate ("exponential").

    Without a rate, a linear gain reaches 0 at the end of training and an exponential gain e^-5.

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
class Growth:
    """A factor that grows from `begin` to 1: in a straight line ("linear") or by equal ratios ("geometric").

    >>> [Growth("geometric", 0.01)(Clock(step, 4)) for step in (0, 2, 4)]
    [0.01, 0.1, 1.0]
    """

    kind: str
    begin: float

    def __call__(self, clock: Clock) -> float:
        if self.kind == "linear":
            return self.begin + (1 - self.begin) * clock.progress
        return self.begin ** (1 - clock.progress)


@dataclass(frozen=True)
class ShareOfTheRest:
    """The fraction that a step is of the steps left: subtracted at each step, it leads to zero in a straight line.

    If steps were skipped, the next step that is taken makes up for them.

    >>> [ShareOfTheRest()(Clock(step, 4)) for step in (1, 2, 3, 4)]
    [0.25, 0.3333333333333333, 0.5, 1.0]
    >>> ShareOfTheRest()(Clock(2, 4, since=0))
    0.5
    """

    def __call__(self, clock: Clock) -> float:
        left = clock.total - clock.last
        return min((clock.step - clock.last) / left, 1.0) if left > 0 else 1.0


@dataclass(frozen=True)
class Frames(Generic[T]):
    """One value for each of several equal stretches of training.

    >>> [Frames(("a", "b"))(Clock(step, 4)) for step in range(5)]
    ['a', 'a', 'b', 'b', 'b']
    """

    values: tuple[T, ...]

    def __call__(self, clock: Clock) -> T:
        count = len(self.values)
        return self.values[min(max(clock.step, 0) * count // max(clock.total, 1), count - 1)]


ALWAYS, NEVER = Constant(True), Constant(False)
