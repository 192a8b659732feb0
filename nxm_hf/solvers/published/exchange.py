"""Greedy, filled, and then improved by exchanges of two entries for two, until none gains."""

import torch
from torch import Tensor

from nxm_hf.solvers.published.filling import LEAST, filled
from nxm_hf.solvers.published.greedy import keep_while_room
from nxm_hf.solvers.published.tilewise import tilewise


@tilewise(4)
def by_exchange(q: Tensor, n: int) -> Tensor:
    """Fill what `by_greedy` leaves short, then swap kept (i, j), (k, l) for pruned (i, l), (k, j), the best swap first.

    Reference: Hubara et al., 2021, https://arxiv.org/abs/2102.08124; their code improves its masks by such swaps.
    Exactly n in every row and column. It ends where no swap of two gains anything, which need not be the optimum:
    that may take a longer ring of entries.

    Args:
        q: Integer scores, (tiles, m, m).
        n: Kept entries of each row and column.
    """
    mask = filled(q, keep_while_room(q, n), n)
    going = torch.arange(len(q), device=q.device)
    while len(going):
        going = going[_swap(q, mask, going)]
    return mask


def _swap(q: Tensor, mask: Tensor, tile: Tensor) -> Tensor:
    """Make the best swap of each of some tiles. Return which of them had a swap that gains."""
    m = q.shape[1]
    # For a pair of rows (i, k): the gain of trading i's entry in column j for the one in column l.
    trade = (q[tile, :, None, :] - q[tile, :, :, None]).masked_fill_(
        ~_may_trade(mask[tile]), LEAST // 2
    )  # (., i, j, l)
    gain = (trade[:, :, None] + trade.transpose(2, 3)[:, None]).flatten(1)  # (., i, k, j, l): k trades l for j
    best, index = gain.max(1)
    gains = best > 0
    tile, index = tile[gains], index[gains]
    i, k, j, l = index // m**3, index // m**2 % m, index // m % m, index % m  # noqa: E741
    for row, leaves, enters in ((i, j, l), (k, l, j)):
        mask[tile, row, leaves] = False
        mask[tile, row, enters] = True
    return gains


def _may_trade(mask: Tensor) -> Tensor:
    """Return, for each row, the pairs of a kept and a pruned column."""
    return mask[:, :, :, None] & ~mask[:, :, None, :]
