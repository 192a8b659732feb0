"""Filling a mask whose rows and columns are short, one entry at a time."""

import torch
from torch import Tensor

LEAST = torch.iinfo(torch.int64).min


def filled(q: Tensor, mask: Tensor, n: int) -> Tensor:
    """Return masks with n in every row and column.

    If a short row and a short column cross in a pruned entry, the best such entry is kept. If they cross in kept
    entries only, the first of each get one more by a trade. A kept entry elsewhere is pruned. The entry of the short
    row in its column and that of the short column in its row are kept. One of the two is always possible.

    Args:
        q: Integer scores, (tiles, m, m).
        mask: Masks with at most n in each row and column.
        n: Kept entries of each row and column.
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
    """Keep the best of these entries in each of some tiles."""
    best = q[tile].masked_fill(~entries[tile], LEAST).flatten(1).argmax(1)
    mask[tile, best // len(q[0]), best % len(q[0])] = True


def _trade(q: Tensor, mask: Tensor, short_rows: Tensor, short_cols: Tensor, tile: Tensor) -> None:
    """Make the best trade for the first short row and column of each of some tiles."""
    row, col = (short[tile].byte().argmax(1) for short in (short_rows, short_cols))
    of_row, of_col = (tile, row), (tile, slice(None), col)
    gain = q[of_row][:, None, :] + q[of_col][:, :, None] - q[tile]
    possible = mask[tile] & ~mask[of_row][:, None, :] & ~mask[of_col][:, :, None]
    best = gain.masked_fill(~possible, LEAST).flatten(1).argmax(1)
    over, across = best // len(q[0]), best % len(q[0])
    mask[tile, over, across] = False
    mask[tile, row, across] = True
    mask[tile, over, col] = True
