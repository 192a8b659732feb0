"""Exact for N:M, and fast: a comparison network finds the n-th largest score of every group."""

import torch
from torch import Tensor

from nxm_hf.solvers.base import NMPattern
from nxm_hf.solvers.comparator_network import select

CPU_BYTES = 2**20  # of scores processed at a time: what a core's own cache holds
GPU_BYTES = 2**26  # bounds the memory, and lets fp32 count the kept without rounding (2**24 scores)
LARGEST_NETWORK = 32  # the network grows as m log² m; wider groups get their threshold by topk


def by_network(scores: Tensor, pattern: NMPattern) -> Tensor:
    """Keep the scores that reach the n-th largest of their group; of equal scores the first.

    Args:
        scores: The scores.
        pattern: The N:M pattern.
    """
    dtype = working_dtype(scores.dtype)
    groups = scores.contiguous().view(-1, pattern.m)
    mask = torch.empty(groups.shape, dtype=torch.bool, device=scores.device)
    room = CPU_BYTES if scores.device.type == "cpu" else GPU_BYTES
    size = min(room // (dtype.itemsize * pattern.m), len(groups))
    rows = torch.empty(pattern.m + 1, size, dtype=dtype, device=scores.device)
    flags = torch.empty(size, pattern.m, dtype=dtype, device=scores.device)
    for part, keep in zip(groups.split(size), mask.split(size), strict=True):
        _keep_largest(part.to(dtype), pattern.n, keep, rows[:, : len(part)], flags[: len(part)])
    return mask.view(scores.shape)


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which scores are compared: fp32 for half floats, which it holds exactly, as it is faster.

    Args:
        dtype: The dtype of the scores.
    """
    if dtype.is_floating_point and dtype.itemsize < 4:
        return torch.float32
    return torch.uint8 if dtype == torch.bool else dtype


def _keep_largest(groups: Tensor, n: int, keep: Tensor, rows: Tensor, flags: Tensor) -> None:
    """Write the mask of (g, m) scores into `keep`; `rows` (m + 1, g) and `flags` (g, m) are buffers."""
    threshold = _nth_largest(groups, n, rows)
    # Comparing into numbers, and copying those to bool, is about twice as fast as comparing into bool. Expanding the
    # thresholds first is faster than broadcasting them along short groups.
    torch.ge(groups, flags.copy_(threshold.unsqueeze(1).expand_as(groups)), out=flags)
    keep.copy_(flags)
    if flags.sum() != n * len(groups):
        tied = (flags.sum(1) != n).nonzero().squeeze(1)
        keep[tied] = _settle_ties(groups[tied], n, threshold[tied].unsqueeze(1))


def _nth_largest(groups: Tensor, n: int, rows: Tensor) -> Tensor:
    """Return the n-th largest of each group: (g, m) -> (g,)."""
    m = groups.shape[1]
    if m > LARGEST_NETWORK:
        return groups.topk(n, dim=1).values[:, -1]
    *wires, spare = rows
    torch.add(groups.t(), 0, out=rows[:m])  # a transpose through arithmetic is faster than copy_
    return select(wires, spare, (n - 1,))[0]


def _settle_ties(groups: Tensor, n: int, threshold: Tensor) -> Tensor:
    """Return the mask where more than n scores reach the threshold: only the first of those that equal it are kept."""
    above, equal = groups > threshold, groups == threshold
    room = n - above.sum(1, keepdim=True)
    return above | (equal & (equal.cumsum(1) <= room))
