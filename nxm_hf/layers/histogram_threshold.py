"""Exact for scores in parts: the threshold that one process would find, from histograms of the bits of all parts.

No process sees the scores of another. The first histogram counts the highest 16 bits of every score. Each further one
counts the next 16 bits of the scores that are still undecided.
"""

from typing import Protocol

import torch
from torch import Tensor

DIGIT = 16  # bits that one histogram decides
BINS = 2**DIGIT


class Exchange(Protocol):
    """The exchange of numbers between processes. Every process calls each of these."""

    @property
    def rank(self) -> int:
        """Return the number of this process, which is the order of the parts."""

    def total(self, numbers: Tensor) -> Tensor:
        """Add up numbers over the processes."""

    def of_each(self, numbers: Tensor) -> Tensor:
        """Return the numbers of every process, stacked."""


def keep_highest_of_all(scores: Tensor, count: int, exchange: Exchange) -> Tensor:
    """Return this process's part of the mask that keeps the highest scores of all parts together.

    Of equal scores the first are kept, where the parts follow each other in the order of the processes. Scores of 32
    bits or fewer take two exchanges, those of 64 bits take four. One more, of one number, is needed only if not all of
    the scores that equal the threshold are kept.

    Args:
        scores: This process's part, of any shape. It may be empty.
        count: How many to keep in all parts together.
        exchange: The processes.

    Returns:
        The mask, in the shape of the part.

    Raises:
        ValueError: If a score is NaN, in whichever process. It is raised in all.
    """
    if count <= 0:
        return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    keys = _ordered(scores.detach()).flatten()
    top, place = 8 * keys.element_size() - DIGIT, 8 * keys.element_size() - DIGIT
    threshold, undecided, wanted = 0, keys, count
    while True:
        bits = undecided >> place
        bits = bits + BINS // 2 if place == top else bits & (BINS - 1)  # the highest bits have a sign
        counts = torch.bincount(bits, minlength=BINS)
        if place == top:
            sums = _without_nan(exchange.total(torch.cat([counts, scores.isnan().sum()[None]])))
        else:
            sums = exchange.total(counts)
        above = sums.flip(0).cumsum(0).flip(0) - sums
        chosen = int(((above < wanted) & (above + sums >= wanted)).nonzero()[0])
        wanted -= int(above[chosen])
        threshold += (chosen - BINS // 2 if place == top else chosen) << place
        if not place:
            break
        undecided, place = undecided[bits == chosen], place - DIGIT
    if wanted == int(sums[chosen]):  # of the scores that equal the threshold, all are kept
        return (keys >= threshold).view(scores.shape)
    mask, equal = keys > threshold, (keys == threshold).nonzero().flatten()
    before = int(exchange.of_each(counts[chosen])[: exchange.rank].sum())  # of equal scores in earlier parts
    mask[equal[: max(wanted - before, 0)]] = True
    return mask.view(scores.shape)


def _ordered(scores: Tensor) -> Tensor:
    """Return integers that are ordered as the scores are, and equal where they are."""
    if scores.dtype in (torch.bfloat16, torch.float16):
        scores = scores.float()
    integer, largest = (torch.int64, 2**63 - 1) if scores.dtype == torch.float64 else (torch.int32, 2**31 - 1)
    bits = (scores + 0.0).view(integer)  # -0.0 becomes +0.0
    return torch.where(bits < 0, bits ^ largest, bits)


def _without_nan(counts: Tensor) -> Tensor:
    """Return the histogram without its last entry, the number of NaN, and raise unless that is 0."""
    if missing := int(counts[-1]):
        raise ValueError(
            f"Scores of all processes hold {missing} NaN; a mask needs numbers. "
            "Look for the step that made them: a learning rate too high, or an fp16 overflow."
        )
    return counts[:-1]
