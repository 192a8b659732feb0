"""From tensors to kernels: whole lists of them in one region of parallel work."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nxm_hf.solvers.cpu import LANES, unstructured
from nxm_hf.solvers.cpu.kernels import group_kernel, tile_kernel
from nxm_hf.solvers.cpu.threads import in_turns, pieces
from nxm_hf.solvers.transposable_duals import by_duals

INFINITY = {torch.float32: 0x7F800000, torch.bfloat16: 0x7F80, torch.float16: 0x7C00}  # as bits


def over_groups(task: str, pattern: Any, works: Sequence[tuple[Tensor, ...]]) -> list[int]:
    """A task of `groups` on each of these up to three tensors of one size: what it counts, and -1 where it met a NaN.

    All are contiguous, and the first of each has the dtype that counts.
    """
    jobs, owners, step = [], [], LANES * pattern.m
    for place, tensors in enumerate(works):
        dtype = tensors[0].dtype
        kernel = group_kernel(task, pattern.n, pattern.m, 8 * dtype.itemsize, INFINITY[dtype])
        addresses = [*(tensor.data_ptr() for tensor in tensors), 0, 0][:3]
        for first, last in pieces(tensors[0].numel() // step, step):
            jobs.append(lambda kernel=kernel, first=first, last=last, at=addresses: kernel(first, last, *at))
            owners.append(place)
    found = in_turns(jobs, sum(tensors[0].numel() for tensors in works))
    totals = [0] * len(works)
    for place, number in zip(owners, found, strict=True):
        totals[place] = -1 if min(number, totals[place]) < 0 else totals[place] + number
    return totals


def over_tiles(scores: Sequence[Tensor], pattern: Any, masks: Sequence[Tensor]) -> None:
    """Write the best transposable masks of contiguous fp32 scores."""
    n, m = pattern.n, pattern.m
    kernel, jobs, found = tile_kernel(n, m), [], []
    for each, mask in zip(scores, masks, strict=True):
        wide = torch.zeros(each.numel() // m**2, dtype=torch.int8)
        found.append(wide)
        at = (each.data_ptr(), mask.data_ptr(), each.shape[-1], wide.numpy())
        for first, last in pieces(len(wide), m**2):
            jobs.append(lambda first=first, last=last, at=at: kernel(first, last, *at))
    in_turns(jobs, sum(each.numel() for each in scores))
    for each, mask, wide in zip(scores, masks, found, strict=True):
        if wide.any():
            _solve_again(each, pattern, mask, wide.bool())


def _solve_again(scores: Tensor, pattern: Any, mask: Tensor, which: Tensor) -> None:
    """Solve some tiles, counted along strips, with the wider numbers of the solver for any device."""
    m = pattern.m
    tiles, kept = (x.view(-1, m, x.shape[-1] // m, m).transpose(1, 2) for x in (scores, mask))
    which = which.view(tiles.shape[:2])
    kept[which] = by_duals(tiles[which].flatten(0, 1), pattern).view(-1, m, m)


def over_rows(scores: Sequence[Tensor], pattern: Any, masks: Sequence[Tensor]) -> None:
    """Write the masks of the highest of contiguous fp32 scores."""
    for each, mask in zip(scores, masks, strict=True):
        unstructured.keep_highest(each.view(-1), pattern.kept(each.shape), mask.view(-1))


def highest_of_row(scores: Tensor, count: int, mask: Tensor) -> None:
    """Write the mask of the highest of a row."""
    unstructured.keep_highest(scores, count, mask)
