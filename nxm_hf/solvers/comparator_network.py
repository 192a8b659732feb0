"""Comparison networks: sorting as a fixed list of minima and maxima, which work on whole tensors at once."""

from collections.abc import Iterable, Sequence
from functools import cache

import torch
from torch import Tensor

Step = tuple[int, int, bool, bool]


@cache
def network(places: tuple[int, ...], m: int) -> tuple[Step, ...]:
    """The comparators `(high, low, want_max, want_min)` that bring the values of some ranks of m to their places.

    A backwards pass over the sorting network leaves out each comparator, and each half of one,
    on which those places do not depend. Rank 0 is the largest.

    >>> network((0,), 4)
    ((0, 1, True, False), (2, 3, True, False), (0, 2, True, False))
    """
    needed, steps = set(places), []
    for high, low in reversed(_sorting_network(m)):
        if high in needed or low in needed:
            steps.append((high, low, high in needed, low in needed))
            needed |= {high, low}
    return tuple(reversed(steps))


def select(values: Iterable[Tensor], spare: Tensor, places: Sequence[int]) -> list[Tensor]:
    """The values of some ranks, place by place, of m tensors of one shape; all are overwritten, and so is `spare`."""
    wires = list(values)
    for high, low, want_max, want_min in network(tuple(places), len(wires)):
        a, b = wires[high], wires[low]
        if want_min:
            torch.minimum(a, b, out=spare if want_max else b)
        if want_max:
            torch.maximum(a, b, out=a)
        if want_max and want_min:
            wires[low], spare = spare, b
    return [wires[place] for place in places]


def _sorting_network(m: int) -> list[tuple[int, int]]:
    """Batcher's odd-even merge exchange (Knuth 5.2.2, Algorithm M): sorts m values, the largest first."""
    pairs, run = [], 1
    while run < m:
        gap = run
        while gap:
            for start in range(gap % run, m - gap, 2 * gap):
                span = range(start, min(start + gap, m - gap))
                pairs += [(i, i + gap) for i in span if i // (2 * run) == (i + gap) // (2 * run)]
            gap //= 2
        run *= 2
    return pairs
