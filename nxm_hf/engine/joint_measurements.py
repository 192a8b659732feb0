"""Measurements of sharded weights: each turn exchanges the numbers of all weights at once."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from nxm_hf.layers.plan import Target
from nxm_hf.layers.sharding import Shards
from nxm_hf.methods import Measurement, Method, State
from nxm_hf.methods.base import advance
from nxm_hf.methods.schedules import Clock

Visit = Callable[[Target], AbstractContextManager[tuple[Method, Tensor, Clock]]]


@torch.no_grad()
def measure_together(
    shards: Shards | None, targets: Iterable[Target], states: Mapping[str, State], visit: Visit
) -> None:
    """Run the measurement of every weight's method before a step. Every process calls this.

    Args:
        shards: The processes that share the weights. None if weights are whole; then nothing is done.
        targets: The weights.
        states: The state of each weight's method, by name.
        visit: Return a context that gives the method, the weight and the clock of a target.
    """
    if shards is None:
        return

    def measurement(target: Target) -> Measurement:
        with visit(target) as (method, weight, clock):
            yield from method.measure(weight, states[target.name], clock)

    add_up_in_turns([measurement(target) for target in targets], shards.total)


def add_up_in_turns(measurements: Iterable[Measurement], total: Callable[[Tensor], Tensor]) -> None:
    """Run all measurements to their end. The numbers that they yield in one turn are added up in one exchange.

    Args:
        measurements: The measurements, in the same order in every process.
        total: Return the sums of a vector of doubles over all processes.
    """
    running = [(measurement, numbers) for measurement in measurements if (numbers := advance(measurement)) is not None]
    while running:
        sums = total(torch.cat([numbers.double() for _, numbers in running]))
        parts = sums.split([len(numbers) for _, numbers in running])
        answers = [
            (measurement, advance(measurement, part)) for (measurement, _), part in zip(running, parts, strict=True)
        ]
        running = [(measurement, numbers) for measurement, numbers in answers if numbers is not None]
