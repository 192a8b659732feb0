"""Comparison networks: sorting as a fixed list of minima and maxima, which work on whole tensors at once."""

from collections.abc import Iterable, Sequence
from functools import cache

import torch
from torch import Tensor

Comparator = tuple[int, int, bool, bool]


@cache
def network(ranks: tuple[int, ...], m: int) -> tuple[Comparator, ...]:
    """Return the comparators that bring the values of some ranks of m to the wires of those numbers.

    A backwards pass over the sorting network drops each comparator, and each half of one, that no wanted rank needs.

    Args:
        ranks: The wanted ranks; rank 0 is the largest.
        m: How many values there are.

    Returns:
        Comparators `(high, low, want_max, want_min)` of two wires.

    Example:
        >>> network((0,), 4)
        ((0, 1, True, False), (2, 3, True, False), (0, 2, True, False))
    """
    needed, comparators = set(ranks), []
    for high, low in reversed(_sorting_network(m)):
        if high in needed or low in needed:
            comparators.append((high, low, high in needed, low in needed))
            needed |= {high, low}
    return tuple(reversed(comparators))


def select(values: Iterable[Tensor], spare: Tensor, ranks: Sequence[int]) -> list[Tensor]:
    """Return the values of some ranks, entry by entry, of m tensors of one shape.

    Args:
        values: The tensors, which are overwritten.
        spare: One more of their shape, a buffer.
        ranks: The wanted ranks; rank 0 is the largest.

    Example:
        >>> select(torch.tensor([[3, 8], [1, 9], [2, 7]]), torch.empty(2, dtype=torch.int64), [1])
        [tensor([2, 8])]
    """
    wires = list(values)
    for high, low, want_max, want_min in network(tuple(ranks), len(wires)):
        a, b = wires[high], wires[low]
        if want_min:
            torch.minimum(a, b, out=spare if want_max else b)
        if want_max:
            torch.maximum(a, b, out=a)
        if want_max and want_min:
            wires[low], spare = spare, b
    return [wires[rank] for rank in ranks]


def _sorting_network(m: int) -> list[tuple[int, int]]:
    """Return Batcher's odd-even merge exchange (Knuth 5.2.2, Algorithm M), which sorts m values, the largest first."""
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
