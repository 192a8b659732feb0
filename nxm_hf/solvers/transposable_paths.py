"""Shortest paths: the cheapest way to bring the rows of many tiles to their count without changing column counts.

All tiles take each step together. `cpu.transposable_paths` is the form for one tile in compiled code.
"""

import torch
from torch import Tensor


def balance_rows(q: Tensor, kept: Tensor, n: int) -> Tensor:
    """Return masks with n in every row, at the least loss of score.

    A path leaves a row with too many entries by a kept entry. From that column it goes on to a row where the column is
    pruned, and so on to a row with too few. Swapping kept and pruned along it moves one entry from its first row to its
    last. Along a cheapest path, the mask stays the best of its counts.

    Args:
        q: Integer scores, (m, m, tiles).
        kept: Masks with n in every column, each the best for its counts.
        n: Kept entries of each row.
    """
    kept = kept.clone()
    excess = kept.sum(1) - n  # (m, tiles)
    indices = excess.any(0).nonzero().squeeze(1)
    q, part, excess = q[..., indices], kept[..., indices], excess[:, indices]
    while len(indices):
        _move(q, part, excess)
        done = ~excess.any(0)
        kept[..., indices[done]] = part[..., done]
        left = (~done).nonzero().squeeze(1)
        indices, q, part, excess = indices[left], q[..., left], part[..., left], excess[:, left]
    return kept


def _move(q: Tensor, kept: Tensor, excess: Tensor) -> None:
    """Swap along cheapest paths, one or more in every tile, of which no two meet.

    A path leaves the trees of the others as cheap as they were, so one search is enough for all of them. All rows with
    too few can be reached: the difference between the mask and one with n in each row consists of such paths.
    """
    trees = _Trees(q, kept, excess > 0)
    row, tile = (excess < 0).nonzero().unbind(1)
    root = trees.climb(row, tile)
    # Paths of one tree may share entries, those of two trees never do: each root sends to its first row only.
    tree = root * excess.shape[1] + tile
    first = torch.full_like(excess, len(excess)).flatten().scatter_reduce_(0, tree, row, "amin")
    chosen = first[tree] == row
    row, tile, root = row[chosen], tile[chosen], root[chosen]
    trees.climb(row, tile, kept)
    excess[row, tile] += 1
    excess[root, tile] -= 1


class _Trees:
    """The cheapest paths from rows with too many to all rows and columns, by Bellman and Ford, in all tiles at once."""

    def __init__(self, q: Tensor, kept: Tensor, roots: Tensor):
        self.far = torch.iinfo(q.dtype).max // 2  # the sum of two does not overflow
        self.to_col = torch.where(kept, q, self.far)  # cost of a step from row to column: (row, column, tile)
        self.to_row = torch.where(kept, self.far, -q)  # cost of a step from column to row
        self.rows = torch.where(roots, 0, self.far).to(q.dtype)
        self.cols = torch.full_like(self.rows, self.far)
        # The turn in which each became cheaper last. Climbing only to earlier ones cannot run in a circle of ties.
        self.row_turn = torch.zeros_like(self.rows, dtype=torch.uint8)
        self.col_turn = torch.zeros_like(self.row_turn)
        self._relax()

    def _relax(self) -> None:
        work, turn, moving = torch.empty_like(self.to_col), 0, True
        while moving:
            turn += 1
            cols = _least(torch.add(self.rows[:, None], self.to_col, out=work))
            self.col_turn.masked_fill_(cols < self.cols, turn)
            self.cols.copy_(cols)
            rows = _least(torch.add(self.cols[:, None], self.to_row.transpose(0, 1), out=work))
            cheaper = rows < self.rows
            self.row_turn.masked_fill_(cheaper, turn)
            self.rows = torch.minimum(self.rows, rows)
            moving = bool(cheaper.any())

    def climb(self, row: Tensor, tile: Tensor, swap: Tensor | None = None) -> Tensor:
        """Return the roots of some rows of some tiles.

        Args:
            row: The rows.
            tile: The tile of each row.
            swap: Masks that are changed along the paths, if given.
        """
        row = row.clone()
        going = torch.arange(len(row), device=row.device)
        while len(going):
            low, at = row[going], tile[going]
            tight = self.cols[:, at] + self.to_row[low, :, at].T == self.rows[low, at]
            col = _first(tight & (self.col_turn[:, at] <= self.row_turn[low, at]))
            tight = self.rows[:, at] + self.to_col[:, col, at] == self.cols[col, at]
            high = _first(tight & (self.row_turn[:, at] < self.col_turn[col, at]))
            if swap is not None:
                swap[low, col, at] = True
                swap[high, col, at] = False
            row[going] = high
            going = going[self.row_turn[high, at] > 0]
        return row


def _first(hits: Tensor) -> Tensor:
    """Return the index of the first hit along the first dimension."""
    return hits.byte().argmax(0)


def _least(values: Tensor) -> Tensor:
    """Return the minimum along the first dimension, by halves: faster than `amin` on integers. Overwrites `values`."""
    while len(values) > 1:
        half = len(values) // 2
        torch.minimum(values[:half], values[-half:], out=values[:half])
        values = values[: len(values) - half]
    return values[0]
