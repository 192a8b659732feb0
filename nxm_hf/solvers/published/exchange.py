"""Greedy, filled, and then improved by exchanges of two entries for two, until there is none."""

import torch
from torch import Tensor

from nxm_hf.solvers.published.filling import LEAST, filled
from nxm_hf.solvers.published.greedy import keep_while_room
from nxm_hf.solvers.published.tilewise import tilewise


@tilewise(4)
def by_exchange(q: Tensor, n: int) -> Tensor:
    """Fill what `by_greed` leaves short, then swap kept (i, j), (k, l) for pruned (i, l), (k, j), the best swap first.

    Reference: Hubara et al., 2021, https://arxiv.org/abs/2102.08124; their code improves its masks by such swaps.
    Exactly n in every row and column. It ends where no swap of two gains anything, which need not be the optimum:
    that may take a longer ring of entries.
    """
    mask = filled(q, keep_while_room(q, n), n)
    going = torch.arange(len(q), device=q.device)
    while len(going):
        going = going[_swap(q, mask, going)]
    return mask


def _swap(q: Tensor, mask: Tensor, tile: Tensor) -> Tensor:
    """Make the best swap of each of some tiles; which of them had one that gains."""
    m = q.shape[1]
    # Of a pair of rows (i, k): trading i's entry in column j for the one in column l, where i keeps j and not l.
    trade = (q[tile, :, None, :] - q[tile, :, :, None]).masked_fill_(
        ~_may_trade(mask[tile]), LEAST // 2
    )  # (., i, j, l)
    gain = (trade[:, :, None] + trade.transpose(2, 3)[:, None]).flatten(1)  # (., i, k, j, l): k trades l for j
    best, place = gain.max(1)
    gains = best > 0
    tile, place = tile[gains], place[gains]
    i, k, j, l = place // m**3, place // m**2 % m, place // m % m, place % m  # noqa: E741
    for row, leaves, enters in ((i, j, l), (k, l, j)):
        mask[tile, row, leaves] = False
        mask[tile, row, enters] = True
    return gains


def _may_trade(mask: Tensor) -> Tensor:
    return mask[:, :, :, None] & ~mask[:, :, None, :]
