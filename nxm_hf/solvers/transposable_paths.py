"""Shortest paths: the cheapest way to bring the rows of many tiles to their count, their columns kept as they are."""

import torch
from torch import Tensor


def balance_rows(q: Tensor, kept: Tensor, n: int) -> Tensor:
    """Give every row n at the least loss: whole scores and masks of (m, m, tiles), the masks best for their counts.

    A path leaves a row that has too many by an entry it keeps, goes on from that column to a row that lacks this
    entry, and so on to a row that has too few. Keeping what it found pruned and pruning what it found kept moves one
    from its first row to its last, and along a cheapest path the mask stays the best of its counts.
    """
    kept = kept.clone()
    excess = kept.sum(1) - n  # (m, tiles)
    places = (excess != 0).any(0).nonzero().squeeze(1)
    q, part, excess = q[..., places], kept[..., places], excess[:, places]
    while len(places):
        _move(q, part, excess)
        done = (excess == 0).all(0)
        kept[..., places[done]] = part[..., done]
        left = (~done).nonzero().squeeze(1)
        places, q, part, excess = places[left], q[..., left], part[..., left], excess[:, left]
    return kept


def _move(q: Tensor, kept: Tensor, excess: Tensor) -> None:
    """Move along cheapest paths, one or more in every tile, and no two that meet.

    A path leaves the trees of the others as cheap as they were, so that one search does for all of them. And rows with
    too few can all be reached: what sets the mask apart from one with n in each is made of such paths.
    """
    trees = _Trees(q, kept, excess > 0)
    row, tile = (excess < 0).nonzero().unbind(1)
    root = trees.climb(row, tile)
    # Paths of one tree may share entries, those of two trees never do: each root sends to its first row only.
    place = root * excess.shape[1] + tile
    first = torch.full_like(excess, len(excess)).flatten().scatter_reduce_(0, place, row, "amin")
    chosen = first[place] == row
    row, tile, root = row[chosen], tile[chosen], root[chosen]
    trees.climb(row, tile, kept)
    excess[row, tile] += 1
    excess[root, tile] -= 1


class _Trees:
    """The cheapest paths from rows with too many to all rows and columns, by Bellman and Ford, in all tiles at once."""

    def __init__(self, q: Tensor, kept: Tensor, roots: Tensor):
        self.far = torch.iinfo(q.dtype).max // 2  # two of them still are a number
        self.to_col = torch.where(kept, q, self.far)  # what a step from row to column costs: (row, column, tile)
        self.to_row = torch.where(kept, self.far, -q)  # and one from column to row
        self.rows = torch.where(roots, 0, self.far).to(q.dtype)
        self.cols = torch.full_like(self.rows, self.far)
        # In which turn each was last made cheaper. Climbing only to earlier ones cannot run in a circle of ties.
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
        """The roots of some rows of some tiles; on the way the mask `swap` is changed along the paths."""
        row = row.clone()
        going = torch.arange(len(row), device=row.device)
        while len(going):
            low, where = row[going], tile[going]
            tight = self.cols[:, where] + self.to_row[low, :, where].T == self.rows[low, where]
            col = _first(tight & (self.col_turn[:, where] <= self.row_turn[low, where]))
            tight = self.rows[:, where] + self.to_col[:, col, where] == self.cols[col, where]
            high = _first(tight & (self.row_turn[:, where] < self.col_turn[col, where]))
            if swap is not None:
                swap[low, col, where] = True
                swap[high, col, where] = False
            row[going] = high
            going = going[self.row_turn[high, where] > 0]
        return row


def _first(hits: Tensor) -> Tensor:
    """Where along the first dimension the first hit is."""
    return hits.byte().argmax(0)


def _least(values: Tensor) -> Tensor:
    """The minimum along the first dimension, by halves, which is faster than `amin` on whole numbers; overwrites."""
    while len(values) > 1:
        half = len(values) // 2
        torch.minimum(values[:half], values[-half:], out=values[:half])
        values = values[: len(values) - half]
    return values[0]
