"""The learning correlation computed during training, in memory that does not grow with the number of snapshots."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nxm_hf.analysis.correlation import Learning, first_crossing, make_learning, pearson, sorted_lags, usable_lags


class LearningCorrelation:
    """Computes `learning_correlation(snapshots, lags=lags)` from snapshots that are added one at a time.

    It stores as many snapshots as the largest lag, and three sums for each lag.

    Args:
        lags: The lags to measure, whole numbers of at least 1.

    Raises:
        ValueError: for wrong lags.

    Example:
        >>> stream = LearningCorrelation(range(1, 5))
        >>> for value in [0.0, 1, 2, 3, 2, 1, 0, -1, -2, -3, -2, -1]:
        ...     stream.add(torch.tensor([value]))
        >>> round(stream.result().delta.item(), 6)
        0.33133
    """

    def __init__(self, lags: Sequence[int]):
        self.lags = sorted_lags(lags)
        self.count = 0  # snapshots added

    def add(self, snapshot: Tensor) -> None:
        """Add the next snapshot.

        Args:
            snapshot: The same weights as before, one evenly spaced time later.

        Raises:
            ValueError: if its shape is not that of the first snapshot.
        """
        if self.count == 0:
            self._allocate(snapshot)
        if snapshot.shape != self._shape:
            raise ValueError(
                f"This snapshot has the shape {tuple(snapshot.shape)}, but the first had {tuple(self._shape)}. "
                "Use a separate LearningCorrelation for other weights."
            )
        values = snapshot.detach().flatten()
        x = values.double() - self._first  # sums of small moves keep their digits; sums of raw weights would not
        reached = self._lags[self._lags <= self.count]
        past = self._recent[(self.count - reached) % self.lags[-1]].double() - self._first
        self._products[: len(reached)] += past * x
        moments = torch.stack([x, x * x])
        self._heads[:, len(reached) :] += moments[:, None]
        self._sums += moments
        self._recent[self.count % self.lags[-1]] = values
        self.count += 1

    def result(self, mask: Tensor | None = None) -> Learning:
        """Return the learning correlation of all snapshots so far.

        Args:
            mask: The final mask of these weights, to tell kept from pruned ones.

        Raises:
            ValueError: for too few snapshots, or for a mask of another shape.
        """
        lags = usable_lags(self.lags, self.count)
        used = len(lags)
        totals = self._sums[:, None]
        early, late = totals - self._tails(lags), totals - self._heads[:, :used]
        points = (self.count - self._lags[:used])[:, None]
        variance = self._sums[1] - self._sums[0].square() / self.count
        rho = pearson(points, self._products[:used], early[0], late[0], early[1], late[1], variance)
        defined = (self._sums[1] > 0) & self._sums[1].isfinite()
        return make_learning(first_crossing(rho, defined, lags, self.count).view(self._shape), mask)

    def _allocate(self, snapshot: Tensor) -> None:
        """Create the sums; the moments in `_heads` and `_sums` are (sum, sum of squares)."""
        self._shape, lag_count, width = snapshot.shape, len(self.lags), snapshot.numel()
        self._first = snapshot.detach().flatten().double()
        self._lags = torch.tensor(self.lags, device=snapshot.device)
        self._recent = snapshot.new_zeros(self.lags[-1], width)  # a ring buffer of the latest snapshots
        self._products = self._first.new_zeros(lag_count, width)
        self._heads = self._first.new_zeros(2, lag_count, width)  # moments of the first `lag` entries, for each lag
        self._sums = self._first.new_zeros(2, width)

    def _tails(self, lags: list[int]) -> Tensor:
        """Return the moments of the last `lag` entries, for each lag."""
        back = torch.arange(1, lags[-1] + 1, device=self._lags.device)
        x = self._recent[(self.count - back) % self.lags[-1]].double() - self._first
        ends = self._lags[: len(lags)] - 1
        return torch.stack([x.cumsum(0)[ends], x.square().cumsum(0)[ends]])
