"""Timing: run alternatives in turns, so that a busy machine disturbs all of them alike."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles

import torch

LEAST_ROUNDS, MOST_ROUNDS = 5, 200


@dataclass(frozen=True)
class Timing:
    """The times of one alternative, in seconds.

    Args:
        times: The time of each round.
    """

    times: tuple[float, ...]

    @property
    def median(self) -> float:
        """Return the median."""
        return median(self.times)

    @property
    def spread(self) -> tuple[float, float]:
        """Return the first and the third quartile."""
        first, _, third = quantiles(self.times, n=4)
        return first, third


def time_in_turns(
    alternatives: Mapping[str, Callable[[], object]], seconds: float = 0.2, device: torch.device | None = None
) -> dict[str, Timing]:
    """Time functions in turns, after one round that does not count.

    Args:
        alternatives: The functions, by name.
        seconds: How long to go on, in about; there are at least 5 rounds and at most 200.
        device: Where the functions compute, so that a GPU is waited for.

    Returns:
        The times of each function.
    """
    on_gpu = device is not None and device.type == "cuda"
    wait = torch.cuda.synchronize if on_gpu else _nothing
    # What a lone thread computes takes CPU time of its own, which other processes do not add to.
    clock = time.perf_counter if on_gpu or torch.get_num_threads() > 1 else time.thread_time
    for function in alternatives.values():
        function()
    wait()
    times: dict[str, list[float]] = {name: [] for name in alternatives}
    begin = time.perf_counter()
    for number in range(MOST_ROUNDS):
        if number >= LEAST_ROUNDS and time.perf_counter() - begin > seconds:
            break
        for name, function in alternatives.items():
            start = clock()
            function()
            wait()
            times[name].append(clock() - start)
    return {name: Timing(tuple(each)) for name, each in times.items()}


def _nothing() -> None:
    """Return at once: a CPU has finished when the function returns."""
