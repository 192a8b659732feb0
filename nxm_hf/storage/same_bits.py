"""Comparison of tensors bit by bit."""

import numpy as np
import torch
from torch import Tensor

_AT_ONCE = 1 << 16  # numbers of 64 bits that are compared at a time: their flags stay in the cache


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return True if two tensors of one device hold the same bits. Equal numbers may differ in them, as 0.0 and -0.0.

    Args:
        a: A tensor.
        b: Another tensor, whose shape and type may differ.
    """
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.ndim > 1 and a.stride() == b.stride() and a.mT.is_contiguous():
        a, b = a.mT, b.mT  # so that neither has to be copied
    a, b = (x.detach().contiguous().view(-1).view(torch.uint8) for x in (a, b))
    if a.device.type != "cpu":
        return torch.equal(a, b)
    # NumPy takes two thirds of the time of torch.equal, and ends at the first part that differs.
    wide = np.int64 if a.numel() % 8 == 0 else np.uint8
    ours, theirs = a.numpy().view(wide), b.numpy().view(wide)
    return all(
        np.array_equal(ours[start : start + _AT_ONCE], theirs[start : start + _AT_ONCE])
        for start in range(0, ours.size, _AT_ONCE)
    )
