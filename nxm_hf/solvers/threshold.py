"""Exact for unstructured: everything above one threshold, and the first of what equals it."""

from typing import Any

import torch
from torch import Tensor


def by_threshold(scores: Tensor, pattern: Any) -> Tensor:
    """Keep the `pattern.kept(shape)` highest scores of the whole tensor; of equal scores the first."""
    return keep_highest(scores.flatten(), pattern.kept(scores.shape)).view(scores.shape)


def keep_highest(scores: Tensor, count: int) -> Tensor:
    """The mask of the `count` highest of a row of scores; of equal scores the first."""
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = _nth_highest(scores, count)
    mask = scores >= threshold
    if extra := int(mask.count_nonzero()) - count:
        mask[(scores == threshold).nonzero()[-extra:]] = False
    return mask


def _nth_highest(scores: Tensor, count: int) -> Tensor:
    """The `count`-th highest score, without sorting the rest where that can be avoided."""
    if scores.device.type != "cpu":
        return scores.topk(count, sorted=False).values.amin()
    # NumPy's partition is several times faster than kthvalue and topk on a CPU; it knows no bfloat16.
    values = scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
    place = len(scores) - count
    found = values.numpy().copy()
    found.partition(place)
    return torch.tensor(found[place], dtype=scores.dtype)
