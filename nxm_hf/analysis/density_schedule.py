"""What the forward pass of each step multiplies by, as a method's schedules have it before any training."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import singledispatch
from itertools import chain, groupby, islice, repeat

from nxm_hf.methods import Masked, Phases, Rewiring
from nxm_hf.methods.schedules import Clock, Every
from nxm_hf.patterns import Dense, Pattern

Use = tuple[Pattern, bool]  # what the weight holds exactly, and whether pruned entries get no gradient
WHOLE: Use = (Dense(), False)


@dataclass(frozen=True)
class Stretch:
    """Steps in a row with the same use of the weight."""

    pattern: Pattern
    frozen: bool
    steps: int


def stretches(phases: Phases, total: int, done: int | None = None) -> tuple[Stretch, ...]:
    """The steps of a training, or the first so many of them.

    >>> from nxm_hf import patterns, recipes
    >>> asp = recipes.make("asp", patterns.parse("2:4"), {})
    >>> [(str(part.pattern), part.steps) for part in stretches(Phases(asp, asp.pattern.value, warmup=0.1), 50)]
    [('dense', 5), ('2:4', 45)]
    """
    begin, end = phases.window(Clock(0, total))
    settled = (phases.pattern, True)
    every = chain(repeat(WHOLE, begin), uses(phases.method, end - begin), repeat(settled, total - end))
    return tuple(Stretch(*use, steps=sum(1 for _ in run)) for use, run in groupby(islice(every, done)))


@singledispatch
def uses(method: object, steps: int) -> Iterator[Use]:
    """What the forward pass uses at each of the method's own steps; the whole weight, unless we know better."""
    return repeat(WHOLE, steps)


@uses.register
def _(method: Masked, steps: int) -> Iterator[Use]:
    held, frozen = Dense(), False
    for step in range(steps):
        clock = Clock(step, steps)
        freezes = method.freeze(clock)
        if step == 0 or method.refresh(clock) or (freezes and not frozen):
            held = method.pattern(clock)
        frozen = frozen or freezes
        # A gain above 0 leaves something everywhere, so that no multiplication can be left out.
        yield (held, frozen) if frozen or method.gain(clock) == 0 else WHOLE


@uses.register
def _(method: Rewiring, steps: int) -> Iterator[Use]:
    for step in range(steps):
        # The step that rewires by gradient needs that of every entry.
        due = Every(method.every)(Clock(step + 1, steps))
        yield method.pattern, not (due and method.grow == "gradient")
