"""Exact for unstructured: everything above one threshold, and the first of the scores that equal it."""

from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from nxm_hf.solvers.base import SizedPattern

SAMPLE = 2**14  # scores that tell about where the threshold is
SIGMAS = 4  # half the width of the bracket; if the threshold is outside, all scores are partitioned
PART = 2**17  # scores processed at a time: they stay in cache


def by_threshold(scores: Tensor, pattern: SizedPattern) -> Tensor:
    """Keep the highest scores of the whole tensor; of equal scores the first.

    Args:
        scores: The scores, of any shape.
        pattern: The unstructured pattern.
    """
    return keep_highest(scores.flatten(), pattern.kept(scores.shape)).view(scores.shape)


def fill_by_threshold(scores: Sequence[Tensor], pattern: SizedPattern, masks: Sequence[Tensor]) -> None:
    """Write the masks of `by_threshold` for a list.

    Args:
        scores: The scores.
        pattern: The unstructured pattern.
        masks: The tensors to write into.
    """
    for each, mask in zip(scores, masks, strict=True):
        _mark_highest(each.flatten(), pattern.kept(each.shape), mask.view(-1))


def keep_highest(scores: Tensor, count: int) -> Tensor:
    """Return the mask of the highest of a row of scores; of equal scores the first.

    Args:
        scores: A row of scores.
        count: How many to keep.

    Example:
        >>> keep_highest(torch.tensor([3.0, 1.0, 3.0, 3.0]), 2).int().tolist()
        [1, 0, 1, 0]
    """
    mask = torch.empty_like(scores, dtype=torch.bool)
    _mark_highest(scores, count, mask)
    return mask


def _mark_highest(scores: Tensor, count: int, mask: Tensor) -> None:
    if not 0 < count < len(scores):
        mask.fill_(count > 0)
    elif scores.device.type == "cpu":
        # NumPy compares, counts and partitions several times faster than torch on a CPU. It has no bfloat16.
        half = scores.dtype in (torch.bfloat16, torch.float16)
        _mark_within_bracket((scores.float() if half else scores).numpy(), count, mask.numpy())
    else:
        _mark_by_topk(scores, count, mask)


def _mark_by_topk(scores: Tensor, count: int, mask: Tensor) -> None:
    threshold = scores.topk(count, sorted=False).values.amin()
    torch.ge(scores, threshold, out=mask)
    if extra := int(mask.count_nonzero()) - count:
        mask[(scores == threshold).nonzero()[-extra:]] = False


def _mark_within_bracket(scores: numpy.ndarray, count: int, mask: numpy.ndarray) -> None:
    """Keep all above a bracket that holds the threshold; only the scores inside are partitioned."""
    low, high = _bracket(scores, count)
    inside = _split(scores, low, high, mask)
    wanted = count - (numpy.count_nonzero(mask) - len(inside))
    if not 0 <= wanted <= len(inside):
        inside, wanted = _split(scores, scores.min(), scores.max(), mask), count
    mask[inside] = False
    if wanted:
        candidates = scores[inside]
        threshold = numpy.partition(candidates, len(candidates) - wanted)[len(candidates) - wanted]
        above, equal = candidates > threshold, candidates == threshold
        mask[inside[above]] = True
        mask[inside[equal][: wanted - numpy.count_nonzero(above)]] = True


def _bracket(scores: numpy.ndarray, count: int) -> tuple[Any, Any]:
    """Return two scores between which the `count`-th highest very likely lies."""
    sample = scores[:: len(scores) // SAMPLE | 1]  # an odd step does not follow columns
    low, high = sample_bracket(sample, count / len(scores))
    return scores.min() if low is None else low, scores.max() if high is None else high


def sample_bracket(sample: numpy.ndarray, share: float) -> tuple[Any | None, Any | None]:
    """Return two values between which the lowest of the highest values of a population very likely lies.

    Args:
        sample: A sample of the population.
        share: The share of the population that counts as highest.

    Returns:
        The two values; None where the sample says nothing, because the value may lie beyond it.

    Example:
        >>> [int(value) for value in sample_bracket(numpy.arange(1000), 0.25)]
        [693, 806]
    """
    ranked = numpy.sort(sample)
    middle = (1 - share) * len(ranked)
    spread = SIGMAS * (len(ranked) * share * (1 - share)) ** 0.5 + 2
    low, high = int(middle - spread), int(middle + spread)
    return ranked[low] if low > 0 else None, ranked[high] if high < len(ranked) else None


def _split(scores: numpy.ndarray, low: Any, high: Any, mask: numpy.ndarray) -> numpy.ndarray:
    """Keep all scores of at least `low`. Return the indices of those of at most `high` among them."""
    indices = []
    for begin in range(0, len(scores), PART):
        part, keep = scores[begin : begin + PART], mask[begin : begin + PART]
        numpy.greater_equal(part, low, out=keep)
        within = part <= high
        within &= keep
        indices.append(numpy.flatnonzero(within) + begin)
    return numpy.concatenate(indices)
