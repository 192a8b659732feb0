"""What the solvers of papers share: they see tiles, many at a time, as whole numbers."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from nxm_hf.solvers.transposable_tiles import quantized_wide, tiles

ENTRIES = 2**22  # of work space at a time


def tilewise(power: int) -> Callable[[Callable[[Tensor, int], Tensor]], Callable[[Tensor, Any], Tensor]]:
    """Make a solver of a function from tiles, (tiles, m, m) of whole scores, and n to their masks.

    Its work space grows as m to this power for each tile, which bounds how many it gets at a time.
    """

    def make(best: Callable[[Tensor, int], Tensor]) -> Callable[[Tensor, Any], Tensor]:
        @wraps(best)
        def solver(scores: Tensor, pattern: Any) -> Tensor:
            mask = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
            most = max(1, ENTRIES // pattern.m**power)
            parts, masks = (tiles(each, pattern.m, most) for each in (scores.contiguous(), mask))
            for part, keep in zip(parts, masks, strict=True):
                q = quantized_wide(part.flatten(2)).permute(2, 0, 1).contiguous()
                keep.copy_(best(q, pattern.n).permute(1, 2, 0).reshape(part.shape))
            return mask

        return solver

    return make
