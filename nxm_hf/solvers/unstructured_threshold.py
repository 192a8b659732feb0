"""Exact for unstructured: everything above one threshold, and the first of what equals it."""

from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

SAMPLE = 2**14  # scores that say about where the threshold is
SIGMAS = 4  # how far from there it is looked for; were it elsewhere, all would be looked through
PART = 2**17  # scores gone through at a time: they stay in cache


def by_threshold(scores: Tensor, pattern: Any) -> Tensor:
    """Keep the `pattern.kept(shape)` highest scores of the whole tensor; of equal scores the first."""
    return keep_highest(scores.flatten(), pattern.kept(scores.shape)).view(scores.shape)


def thresholds_of_many(scores: Sequence[Tensor], pattern: Any, masks: Sequence[Tensor]) -> None:
    """`by_threshold`, for a list."""
    for each, mask in zip(scores, masks, strict=True):
        _mark_highest(each.flatten(), pattern.kept(each.shape), mask.view(-1))


def keep_highest(scores: Tensor, count: int) -> Tensor:
    """The mask of the `count` highest of a row of scores; of equal scores the first."""
    mask = torch.empty_like(scores, dtype=torch.bool)
    _mark_highest(scores, count, mask)
    return mask


def _mark_highest(scores: Tensor, count: int, mask: Tensor) -> None:
    if not 0 < count < len(scores):
        mask.fill_(count > 0)
    elif scores.device.type == "cpu":
        # NumPy compares, counts and partitions several times faster than torch on a CPU; it knows no bfloat16.
        half = scores.dtype in (torch.bfloat16, torch.float16)
        _mark_within_bracket((scores.float() if half else scores).numpy(), count, mask.numpy())
    else:
        threshold = scores.topk(count, sorted=False).values.amin()
        torch.ge(scores, threshold, out=mask)
        if extra := int(mask.count_nonzero()) - count:
            mask[(scores == threshold).nonzero()[-extra:]] = False


def _mark_within_bracket(scores: numpy.ndarray, count: int, mask: numpy.ndarray) -> None:
    """Keep all above a bracket that holds the threshold; only what lies inside is put in order."""
    low, high = _bracket(scores, count)
    inside = _split(scores, low, high, mask)
    wanted = count - (numpy.count_nonzero(mask) - len(inside))
    if not 0 <= wanted <= len(inside):
        inside, wanted = _split(scores, scores.min(), scores.max(), mask), count
    mask[inside] = False
    if wanted:
        found = scores[inside]
        threshold = numpy.partition(found, len(found) - wanted)[len(found) - wanted]
        above, equal = found > threshold, found == threshold
        mask[inside[above]] = True
        mask[inside[equal][: wanted - numpy.count_nonzero(above)]] = True


def _bracket(scores: numpy.ndarray, count: int) -> tuple[Any, Any]:
    """Two scores between which the `count`-th highest most likely is."""
    sample = numpy.sort(scores[:: len(scores) // SAMPLE | 1])  # an odd step does not follow columns
    place, spread = (1 - count / len(scores)) * len(sample), SIGMAS * len(sample) ** 0.5 / 2
    low, high = int(place - spread), int(place + spread)
    return sample[low] if low > 0 else scores.min(), sample[high] if high < len(sample) else scores.max()


def _split(scores: numpy.ndarray, low: Any, high: Any, mask: numpy.ndarray) -> numpy.ndarray:
    """Keep what is at least `low`; the places of what is at most `high`, too."""
    places = []
    for begin in range(0, len(scores), PART):
        part, keep = scores[begin : begin + PART], mask[begin : begin + PART]
        numpy.greater_equal(part, low, out=keep)
        within = part <= high
        within &= keep
        places.append(numpy.flatnonzero(within) + begin)
    return numpy.concatenate(places)
