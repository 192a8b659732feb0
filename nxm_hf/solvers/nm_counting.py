"""Exact for N:M with M = 2 or 4, and the fastest there: every score meets those after it, and wins are counted.

The outcomes of eight meetings are eight bytes of one 64-bit number, so that counting wins takes an eighth of the steps
that comparing takes; a byte never holds more than 14, so none runs over into the next.
"""

import sys
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy
import torch
from torch import Tensor

from nxm_hf.solvers.base import alone
from nxm_hf.solvers.nm_network import working_dtype

CPU_SCORES = 2**18  # worked on at a time: they stay in cache
GPU_SCORES = 2**26
BYTES = 8  # of a word
ONES = 0x0101010101010101

Step = tuple[int, int, int]


def groups_fill_words(scores: Tensor, pattern: Any) -> bool:
    """Where groups end with a word, and the first of its bytes is the lowest."""
    return pattern.m in (2, 4) and scores.numel() % BYTES == 0 and sys.byteorder == "little"


def by_wins(scores: Tensor, pattern: Any) -> Tensor:
    """Keep what wins against m - n of its group or more; between equal scores the first wins."""
    return alone(wins_of_many, scores, pattern)


def wins_of_many(scores: Sequence[Tensor], pattern: Any, masks: Sequence[Tensor]) -> None:
    """`by_wins`, for a list."""
    for each, mask in zip(scores, masks, strict=True):
        row, on_cpu = each.contiguous().view(-1).to(working_dtype(each.dtype)), each.device.type == "cpu"
        room = min(CPU_SCORES if on_cpu else GPU_SCORES, len(row))
        met = torch.empty(room // BYTES, dtype=torch.int64, device=row.device)
        arrays = row, mask.view(-1).view(torch.int64), met, met.view(torch.bool)
        if on_cpu:  # NumPy compares in an eighth of torch's time, and counts in half of it
            _mark(numpy, *(x.numpy() for x in arrays), room, pattern)
        else:
            _mark(torch, *arrays, room, pattern)


def _mark(library: ModuleType, scores: Any, masks: Any, met: Any, flags: Any, room: int, pattern: Any) -> None:
    """Write the mask of a row of scores as words, part by part; `met` is work space, and `flags` are its bytes."""
    steps, certain = _meetings(pattern.m)
    for begin in range(0, len(scores), room):
        part, wins = scores[begin : begin + room], masks[begin // BYTES : (begin + room) // BYTES]
        words, outcomes = met[: len(wins)], flags[: len(part)]
        wins[:] = certain + pattern.n * ONES  # from here on, what has m - n wins has 8 or more
        for distance, within, share in steps:
            library.greater_equal(part[:-distance], part[distance:], out=outcomes[:-distance])
            words &= within
            words *= share
            wins += words
        wins >>= 3
        wins &= ONES


@cache
def _meetings(m: int) -> tuple[tuple[Step, ...], int]:
    """For each distance between two of a group: it, the bytes of the first of the two, and their factor in the sum.

    A win of the first is a loss of the other: one is added to the first byte and taken from the other, which has been
    given one for every meeting. These, and what makes 8 of m, are the second result.

    >>> _meetings(2)[0]
    ((1, 281479271743489, -255),)
    """
    steps, certain = [], (BYTES - m) * ONES
    for distance in range(1, m):
        within = sum(1 << 8 * place for place in range(BYTES) if place % m + distance < m)
        steps.append((distance, within, 1 - (1 << 8 * distance)))
        certain += within << 8 * distance
    return tuple(steps), certain
