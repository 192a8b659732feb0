"""The pattern that each training step multiplies by, worked out from a method's schedules before any training."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import singledispatch
from itertools import chain, groupby, islice, repeat
from typing import NamedTuple

from nxm_hf.methods import Masked, Phases, Rewiring
from nxm_hf.methods.schedules import Clock, Every
from nxm_hf.patterns import Dense, Pattern


class StepUse(NamedTuple):
    """The use of a weight by one step: the pattern that it holds, and True if pruned entries get no gradient."""

    pattern: Pattern
    frozen: bool


DENSE_USE = StepUse(Dense(), frozen=False)


@dataclass(frozen=True)
class DensityPeriod:
    """Consecutive steps that use the weight in the same way, as in `StepUse`."""

    pattern: Pattern
    frozen: bool
    steps: int


def density_schedule(phases: Phases, total_steps: int, steps_done: int | None = None) -> tuple[DensityPeriod, ...]:
    """Divide a training into periods of equal density.

    Args:
        phases: The method with its warm-up and its frozen-mask phase.
        total_steps: Optimizer steps of the whole training.
        steps_done: Consider only so many steps from the start; by default all.

    Returns:
        The periods in order; their steps add up to the steps considered.

    Example:
        >>> from nxm_hf import patterns, recipes
        >>> asp = recipes.make("asp", patterns.parse("2:4"), {})
        >>> periods = density_schedule(Phases(asp, asp.pattern.value, warmup=0.1), 50)
        >>> [(str(period.pattern), period.steps) for period in periods]
        [('dense', 5), ('2:4', 45)]
    """
    begin, end = phases.window(Clock(0, total_steps))
    uses = chain(
        repeat(DENSE_USE, begin),
        step_uses(phases.method, end - begin),
        repeat(StepUse(phases.pattern, frozen=True), total_steps - end),
    )
    runs = groupby(islice(uses, steps_done))
    return tuple(DensityPeriod(use.pattern, use.frozen, steps=sum(1 for _ in run)) for use, run in runs)


@singledispatch
def step_uses(method: object, steps: int) -> Iterator[StepUse]:
    """Yield how the forward pass uses the weight at each of the method's own steps.

    A class of methods without an implementation here counts as dense.

    Args:
        method: The method, without warm-up and frozen-mask phase.
        steps: The number of steps between these two phases.
    """
    return repeat(DENSE_USE, steps)


@step_uses.register
def _masked_uses(method: Masked, steps: int) -> Iterator[StepUse]:
    pattern: Pattern = Dense()
    frozen = False
    for step in range(steps):
        clock = Clock(step, steps)
        freezes = method.freeze(clock)
        if step == 0 or method.refresh(clock) or (freezes and not frozen):
            pattern = method.pattern(clock)
        frozen = frozen or freezes
        # With a gain above 0 pruned entries are not zero, so all multiplications are needed.
        yield StepUse(pattern, frozen) if frozen or method.gain(clock) == 0 else DENSE_USE


@step_uses.register
def _rewiring_uses(method: Rewiring, steps: int) -> Iterator[StepUse]:
    for step in range(steps):
        # A step that grows weights by gradient needs the gradients of pruned entries too.
        rewires = Every(method.every)(Clock(step + 1, steps))
        yield StepUse(method.pattern, not (rewires and method.grow == "gradient"))
