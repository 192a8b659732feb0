"""Exact for dense: nothing is pruned."""

import torch
from torch import Tensor

from nxm_hf.solvers.base import PatternLike


def keep_everything(scores: Tensor, pattern: PatternLike) -> Tensor:
    """Keep every weight.

    Args:
        scores: The scores; only their shape and device are read.
        pattern: The dense pattern.
    """
    return torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
