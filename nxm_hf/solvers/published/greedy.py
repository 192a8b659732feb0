"""The greedy algorithm of Hubara et al.'s code: go from the highest entry down, and keep an entry if it fits."""

import torch
from torch import Tensor

from nxm_hf.solvers.published.tilewise import tilewise


@tilewise(2)
def by_greedy(q: Tensor, n: int) -> Tensor:
    """Keep an entry if its row and its column keep fewer than n so far; the highest entries come first.

    Reference: Hubara et al., 2021, https://arxiv.org/abs/2102.08124, as in their code; the paper's algorithm 1 is
    `by_intersection`. Each entry of the optimum that it misses is outweighed by those that fill its row or its column.
    So where no score is below zero, it keeps at least half of the optimum. Some rows and columns stay short of n.

    Args:
        q: Integer scores, (tiles, m, m).
        n: Kept entries of each row and column, at most.
    """
    return keep_while_room(q, n)


def keep_while_room(weights: Tensor, n: int) -> Tensor:
    """Return the mask of `by_greedy` for numbers of any dtype; of equal ones the first.

    Args:
        weights: The numbers, (tiles, m, m).
        n: Kept entries of each row and column, at most.
    """
    count, m, _ = weights.shape
    order = weights.flatten(1).argsort(dim=1, descending=True, stable=True)
    mask = torch.zeros(count, m * m, dtype=torch.bool, device=weights.device)
    in_row, in_col = (torch.zeros(count, m, dtype=torch.int32, device=weights.device) for _ in range(2))
    for index in order.split(1, 1):
        row, col = index // m, index % m
        fits = (in_row.gather(1, row) < n) & (in_col.gather(1, col) < n)
        mask.scatter_(1, index, fits)
        in_row.scatter_add_(1, row, fits.int())
        in_col.scatter_add_(1, col, fits.int())
    return mask.view_as(weights)
