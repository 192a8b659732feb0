"""Filling a mask whose rows and columns are short, one entry at a time."""

import torch
from torch import Tensor

LEAST = torch.iinfo(torch.int64).min


def filled(q: Tensor, mask: Tensor, n: int) -> Tensor:
    """Bring every row and column to n: whole scores and masks of (tiles, m, m), with at most n in each.

    Where a short row and a short column meet in a pruned entry, the best such entry is kept. Where they meet in kept
    ones only, the first of each get one more by trading: a kept entry elsewhere is given up for the one of the short
    row in its column, and for the one of the short column in its row. One of the two is always possible.
    """
    mask = mask.clone()
    while True:
        short_rows, short_cols = mask.sum(2) < n, mask.sum(1) < n
        if not short_rows.any():
            return mask
        open_entries = short_rows[:, :, None] & short_cols[:, None, :] & ~mask
        simple = open_entries.flatten(1).any(1)
        _insert(q, mask, open_entries, simple.nonzero().squeeze(1))
        _trade(q, mask, short_rows, short_cols, (short_rows.any(1) & ~simple).nonzero().squeeze(1))


def _insert(q: Tensor, mask: Tensor, entries: Tensor, tile: Tensor) -> None:
    best = q[tile].masked_fill(~entries[tile], LEAST).flatten(1).argmax(1)
    mask[tile, best // len(q[0]), best % len(q[0])] = True


def _trade(q: Tensor, mask: Tensor, short_rows: Tensor, short_cols: Tensor, tile: Tensor) -> None:
    row, col = (short[tile].byte().argmax(1) for short in (short_rows, short_cols))
    of_row, of_col = (tile, row), (tile, slice(None), col)
    gain = q[of_row][:, None, :] + q[of_col][:, :, None] - q[tile]
    possible = mask[tile] & ~mask[of_row][:, None, :] & ~mask[of_col][:, :, None]
    best = gain.masked_fill(~possible, LEAST).flatten(1).argmax(1)
    over, across = best // len(q[0]), best % len(q[0])
    mask[tile, over, across] = False
    mask[tile, row, across] = True
    mask[tile, over, col] = True
