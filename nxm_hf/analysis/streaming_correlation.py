"""The learning correlation while training goes on: some lags, and memory that does not grow with the snapshots."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nxm_hf.analysis.correlation import Learning, crossing, in_order, learning, pearson, usable


class LearningCorrelation:
    """`learning_correlation(snapshots, lags=lags)` of snapshots that come one by one.

    It remembers as many snapshots as the largest lag, and three sums for each lag.

    >>> stream = LearningCorrelation(range(1, 5))
    >>> for value in [0.0, 1, 2, 3, 2, 1, 0, -1, -2, -3, -2, -1]:
    ...     stream.add(torch.tensor([value]))
    >>> round(stream.result().delta.item(), 6)
    0.33133
    """

    def __init__(self, lags: Sequence[int]):
        self.lags = in_order(lags)
        self.count = 0  # snapshots seen

    def add(self, snapshot: Tensor) -> None:
        """Take the next snapshot of the same weights."""
        if self.count == 0:
            self._begin(snapshot)
        if snapshot.shape != self._shape:
            raise ValueError(
                f"A snapshot has the shape {tuple(snapshot.shape)}, and the first had {tuple(self._shape)}; "
                "they must be of the same weights. Start a new LearningCorrelation for others."
            )
        raw = snapshot.detach().flatten()
        x = raw.double() - self._first  # the size of a weight would drown how it moves
        seen = self._index[self._index <= self.count]
        past = self._recent[(self.count - seen) % self.lags[-1]].double() - self._first
        self._products[: len(seen)] += past * x
        heads = torch.stack([x, x * x])
        self._heads[:, len(seen) :] += heads[:, None]  # of the lags that are not reached yet
        self._sums += heads
        self._recent[self.count % self.lags[-1]] = raw
        self.count += 1

    def result(self, mask: Tensor | None = None) -> Learning:
        """The learning correlation of all snapshots so far."""
        lags = usable(self.lags, self.count)
        many = len(lags)
        whole = self._sums[:, None]
        early, late = whole - self._tails(lags), whole - self._heads[:, :many]
        points = (self.count - self._index[:many])[:, None]
        spread = self._sums[1] - self._sums[0].square() / self.count
        rho = pearson(points, self._products[:many], early[0], late[0], early[1], late[1], spread)
        defined = (self._sums[1] > 0) & self._sums[1].isfinite()
        return learning(crossing(rho, defined, lags, self.count).view(self._shape), mask)

    def _begin(self, snapshot: Tensor) -> None:
        self._shape, many, width = snapshot.shape, len(self.lags), snapshot.numel()
        self._first = snapshot.detach().flatten().double()
        self._index = torch.tensor(self.lags, device=snapshot.device)
        self._recent = snapshot.new_zeros(self.lags[-1], width)
        self._products = self._first.new_zeros(many, width)
        self._heads = self._first.new_zeros(2, many, width)  # sums and squares of the first entries, as many as the lag
        self._sums = self._first.new_zeros(2, width)

    def _tails(self, lags: list[int]) -> Tensor:
        """Sums and squares of the last entries, as many as each lag."""
        back = torch.arange(1, lags[-1] + 1, device=self._index.device)
        x = self._recent[(self.count - back) % self.lags[-1]].double() - self._first
        ends = self._index[: len(lags)] - 1
        return torch.stack([x.cumsum(0)[ends], x.square().cumsum(0)[ends]])
