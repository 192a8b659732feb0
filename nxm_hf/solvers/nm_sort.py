"""Exact for N:M by a stable sort: the plain form that the faster ones are checked against."""

import torch
from torch import Tensor

from nxm_hf.solvers.base import NMPattern


def by_sorting(scores: Tensor, pattern: NMPattern) -> Tensor:
    """Keep the n highest scores of every group; of equal scores the first.

    Args:
        scores: The scores.
        pattern: The N:M pattern.
    """
    groups = scores.reshape(-1, pattern.m) + 0  # -0.0 becomes +0.0, which a radix sort would tell apart
    order = groups.argsort(dim=-1, descending=True, stable=True)
    mask = torch.zeros(groups.shape, dtype=torch.bool, device=scores.device)
    return mask.scatter_(-1, order[:, : pattern.n], True).view(scores.shape)
