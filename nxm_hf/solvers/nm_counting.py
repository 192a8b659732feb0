"""Exact for N:M with M = 2 or 4, and fastest there: compare every score with those after it, and count its wins.

Eight outcomes are eight bytes of one 64-bit integer, so counting wins takes an eighth of the steps of comparing. A byte
never holds more than 14, so none overflows into the next.
"""

import sys
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy
import torch
from torch import Tensor

from nxm_hf.solvers.base import NMPattern, solve_alone
from nxm_hf.solvers.nm_network import working_dtype

CPU_SCORES = 2**18  # processed at a time: they stay in cache
GPU_SCORES = 2**26
BYTES = 8  # of an integer
ONES = 0x0101010101010101

Step = tuple[int, int, int]


def counting_supports(scores: Tensor, pattern: NMPattern) -> bool:
    """Return whether groups fill whole integers, whose first byte is the lowest.

    Args:
        scores: The scores.
        pattern: The N:M pattern.
    """
    return pattern.m in (2, 4) and scores.numel() % BYTES == 0 and sys.byteorder == "little"


def by_counting(scores: Tensor, pattern: NMPattern) -> Tensor:
    """Keep the scores that win against m - n others of their group or more; of equal scores the first wins.

    Args:
        scores: The scores.
        pattern: The N:M pattern.
    """
    return solve_alone(fill_by_counting, scores, pattern)


def fill_by_counting(scores: Sequence[Tensor], pattern: NMPattern, masks: Sequence[Tensor]) -> None:
    """Write the masks of `by_counting` for a list.

    Args:
        scores: The scores.
        pattern: The N:M pattern.
        masks: The tensors to write into.
    """
    for each, mask in zip(scores, masks, strict=True):
        row, on_cpu = each.contiguous().view(-1).to(working_dtype(each.dtype)), each.device.type == "cpu"
        room = min(CPU_SCORES if on_cpu else GPU_SCORES, len(row))
        outcomes = torch.empty(room // BYTES, dtype=torch.int64, device=row.device)
        wins, flags = mask.view(-1).view(torch.int64), outcomes.view(torch.bool)
        if on_cpu:  # NumPy compares in an eighth of torch's time, and counts in half of it
            _mark(numpy, row.numpy(), wins.numpy(), outcomes.numpy(), flags.numpy(), pattern)
        else:
            _mark(torch, row, wins, outcomes, flags, pattern)


def _mark(library: ModuleType, scores: Any, masks: Any, outcomes: Any, flags: Any, pattern: NMPattern) -> None:
    """Write the mask of a row of scores, part by part, as 64-bit integers.

    Arrays are of `library`, NumPy or torch. `outcomes` is a buffer, and `flags` is a view of its bytes.
    """
    steps, start = _comparisons(pattern.m)
    room = len(flags)
    for begin in range(0, len(scores), room):
        part, wins = scores[begin : begin + room], masks[begin // BYTES : (begin + room) // BYTES]
        integers, won = outcomes[: len(wins)], flags[: len(part)]
        wins[:] = start + pattern.n * ONES  # a byte with m - n wins now ends at 8 or more
        for distance, first_bytes, factor in steps:
            library.greater_equal(part[:-distance], part[distance:], out=won[:-distance])
            integers &= first_bytes
            integers *= factor
            wins += integers
        wins >>= 3
        wins &= ONES


@cache
def _comparisons(m: int) -> tuple[tuple[Step, ...], int]:
    """Return the steps of counting for groups of m, and the integer that it starts from.

    A step is a distance between two entries of a group, the bytes of the first of the two, and the factor of their
    outcomes. A win of the first is a loss of the other: it adds one to the first byte and takes one from the other.
    So each byte starts from one for every comparison in which it is the other, plus 8 - m.

    >>> _comparisons(2)[0]
    ((1, 281479271743489, -255),)
    """
    steps, start = [], (BYTES - m) * ONES
    for distance in range(1, m):
        first_bytes = sum(1 << 8 * i for i in range(BYTES) if i % m + distance < m)
        steps.append((distance, first_bytes, 1 - (1 << 8 * distance)))
        start += first_bytes << 8 * distance
    return tuple(steps), start
