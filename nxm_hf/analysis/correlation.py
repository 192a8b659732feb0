"""The learning correlation: for what part of training a weight keeps the direction in which it moves."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FEWEST = 8  # points in a window, below which a correlation says nothing
CHUNK = 1024  # series at a time: bounds the memory of the transform
_FLAT = 1e-12  # a window with less than this part of the whole variance is constant but for rounding


@dataclass(frozen=True)
class Learning:
    """Of each weight the fraction of training after which it no longer correlates with what it was.

    `delta` has the shape of a snapshot: 1 where the correlation stays positive for as long as it can be measured, NaN
    where there is none because the weight is constant or not finite. Medians and shares leave those out. Read it
    against `random_walk_null`: a pure random walk does not give 0 but a median of about 0.285.
    """

    delta: Tensor
    mask: Tensor | None = None

    @property
    def undefined(self) -> int:
        """How many weights have no correlation."""
        return int(self.delta.isnan().sum())

    @property
    def censored(self) -> float:
        """The share of weights whose correlation stays positive."""
        return float((self._defined() == 1).double().mean())

    @property
    def median(self) -> float:
        """The median over all weights; NaN where there is none."""
        return self.quantile(0.5)

    @property
    def kept(self) -> float:
        """The median over the weights that the mask keeps."""
        return self.quantile(0.5, self._mask())

    @property
    def pruned(self) -> float:
        """The median over the weights that the mask prunes."""
        return self.quantile(0.5, ~self._mask())

    def quantile(self, share: float, where: Tensor | None = None) -> float:
        """The value below which this share of the weights lies, of those `where` says."""
        values = self._defined(where).sort().values
        return float(values[round(share * (len(values) - 1))]) if len(values) else float("nan")

    def _defined(self, where: Tensor | None = None) -> Tensor:
        chosen = self.delta.flatten() if where is None else self.delta[where]
        return chosen[~chosen.isnan()]

    def _mask(self) -> Tensor:
        if self.mask is None:
            raise ValueError("Kept and pruned weights are told apart by a mask, and none was given. Give mask=.")
        return self.mask


def learning_correlation(
    snapshots: Tensor | Sequence[Tensor], mask: Tensor | None = None, lags: Sequence[int] | None = None
) -> Learning:
    """Measure weights that were sampled at K times, evenly spaced: the first dimension is time.

    The correlation at lag t is Pearson's, of the series without its last t entries and without its first t. The
    result is the first lag at which it is not positive, interpolated, over K - 1. `mask`, the final one, tells kept
    from pruned. `lags` looks at some lags only, as the streaming `LearningCorrelation` does; by default at all.

    >>> series = torch.tensor([0.0, 1, 2, 3, 2, 1, 0, -1, -2, -3, -2, -1])
    >>> round(learning_correlation(series).delta.item(), 6)
    0.33133
    """
    if not isinstance(snapshots, Tensor):
        snapshots = torch.stack(list(snapshots))
    count, shape = len(snapshots), snapshots.shape[1:]
    lags = usable(list(range(1, count)) if lags is None else in_order(lags), count)
    chunks = snapshots.detach().reshape(count, -1).split(CHUNK, dim=1)
    delta = torch.cat([crossing(*_correlate(chunk, lags), lags, count) for chunk in chunks])
    return learning(delta.view(shape), mask)


def autocorrelation(snapshots: Tensor, lags: Sequence[int]) -> Tensor:
    """Pearson's correlation of each series with itself, `lags` later: [lags, ...]. NaN where a window is constant."""
    rho, _ = _correlate(snapshots.detach().reshape(len(snapshots), -1), lags)
    return rho.view(len(lags), *snapshots.shape[1:])


def random_walk_null(snapshots: int, weights: int = 2000, seed: int = 0, lags: Sequence[int] | None = None) -> Learning:
    """The learning correlation of pure random walks of as many snapshots: what a weight shows that learns nothing."""
    chance = torch.Generator().manual_seed(seed)
    steps = torch.randn(snapshots, weights, generator=chance, dtype=torch.float64)
    return learning_correlation(steps.cumsum(0), lags=lags)


# -- what the streaming form shares ------------------------------------------------------------------------------


def learning(delta: Tensor, mask: Tensor | None) -> Learning:
    """The result, with its mask checked."""
    if mask is not None and mask.shape != delta.shape:
        raise ValueError(
            f"The mask has the shape {tuple(mask.shape)} and a snapshot {tuple(delta.shape)}; they must be one. "
            "Give the final mask of the sampled weights."
        )
    return Learning(delta, None if mask is None else mask != 0)


def in_order(lags: Sequence[int]) -> list[int]:
    """The lags once each, smallest first."""
    if not len(lags) or any(type(lag) is not int or lag < 1 for lag in lags):
        raise ValueError(f"Lags are whole numbers of at least 1; got {list(lags)!r}. Write range(1, 101).")
    return sorted(set(lags))


def usable(lags: Sequence[int], count: int) -> list[int]:
    """Those that leave enough points of `count` snapshots."""
    enough = [lag for lag in lags if lag <= count - FEWEST]
    if not enough:
        needed = FEWEST + (lags[0] if lags else 1)
        raise ValueError(f"A correlation needs at least {needed} snapshots here; got {count}. Take them more often.")
    return enough


def pearson(points: Tensor, xy: Tensor, x: Tensor, y: Tensor, xx: Tensor, yy: Tensor, whole: Tensor) -> Tensor:
    """The correlation from the sums of two windows; NaN where one varies less than rounding of the `whole` does."""
    left, right = xx - x * x / points, yy - y * y / points
    rho = (xy - x * y / points) / (left.clamp_min(0) * right.clamp_min(0)).sqrt()
    return rho.masked_fill((left <= _FLAT * whole) | (right <= _FLAT * whole), torch.nan)


def crossing(rho: Tensor, defined: Tensor, lags: Sequence[int], count: int) -> Tensor:
    """Where `rho` [lags, series] first is not positive, by a line from the lag before, over count - 1."""
    tau = torch.tensor([0, *lags], dtype=rho.dtype, device=rho.device)
    rho = torch.cat([torch.ones_like(rho[:1]), rho])
    low = rho <= 0  # never where it is NaN
    at = low.byte().argmax(0).clamp_min(1)
    after, before = rho.gather(0, at[None])[0], rho.gather(0, at[None] - 1)[0]
    lag = tau[at - 1] + (tau[at] - tau[at - 1]) * before / (before - after)
    return torch.where(low.any(0), lag / (count - 1), 1.0).masked_fill(~defined, torch.nan)


def _correlate(series: Tensor, lags: Sequence[int]) -> tuple[Tensor, Tensor]:
    """[lags, series] correlations, all lags by one transform, and which series have any."""
    count, index = len(series), torch.tensor(list(lags), dtype=torch.long, device=series.device)
    x = series.double()
    x = x - x[0]  # so that a constant is exactly 0
    defined = (x != 0).any(0) & x.isfinite().all(0)
    x = x - x.mean(0)
    spectrum = torch.fft.rfft(x, n=2 * count, dim=0)
    products = torch.fft.irfft(spectrum.abs().square(), n=2 * count, dim=0)[index]
    sums, squares = (torch.cat([v.new_zeros(1, v.shape[1]), v.cumsum(0)]) for v in (x, x * x))
    early = sums[count - index], squares[count - index]
    late = sums[-1] - sums[index], squares[-1] - squares[index]
    points = (count - index)[:, None]
    return pearson(points, products, early[0], late[0], early[1], late[1], squares[-1]), defined
