"""The part that solvers of papers share: they are given tiles, many at a time, as integers."""

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

from nxm_hf.solvers.base import NMPattern
from nxm_hf.solvers.transposable_tiles import quantized_wide, tiles

ENTRIES = 2**22  # of buffers at a time

TileSolver = Callable[[Tensor, int], Tensor]
WeightSolver = Callable[[Tensor, NMPattern], Tensor]


def tilewise(power: int) -> Callable[[TileSolver], WeightSolver]:
    """Return a decorator that makes a solver `(scores, pattern) -> mask` of a function of tiles.

    The function is called with integer scores, (tiles, m, m), and n, and returns their masks.

    Args:
        power: The buffers of the function grow as m to this power for each tile, which limits the tiles of a call.
    """

    def decorate(solve_tiles: TileSolver) -> WeightSolver:
        @wraps(solve_tiles)
        def solver(scores: Tensor, pattern: NMPattern) -> Tensor:
            mask = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
            most = max(1, ENTRIES // pattern.m**power)
            parts, masks = (tiles(each, pattern.m, most) for each in (scores.contiguous(), mask))
            for part, keep in zip(parts, masks, strict=True):
                q = quantized_wide(part.flatten(2)).permute(2, 0, 1).contiguous()
                keep.copy_(solve_tiles(q, pattern.n).permute(1, 2, 0).reshape(part.shape))
            return mask

        return solver

    return decorate
