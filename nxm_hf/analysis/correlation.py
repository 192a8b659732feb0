"""The learning correlation: the part of training during which a weight keeps the direction in which it moves.

The correlation at lag t is Pearson's, of a weight's series of snapshots without its last t and without its first t.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_POINTS = 8  # in a window; a correlation of fewer points is meaningless
SERIES_PER_CHUNK = 1024  # bounds the memory of the Fourier transform
CONSTANT = 1e-12  # a window with less than this part of the series' variance is constant up to rounding


@dataclass(frozen=True)
class Learning:
    """The learning correlation of many weights.

    `delta` is, for each weight, the fraction of training after which it no longer correlates with its earlier values.
    It is 1 if the correlation stays positive at every measured lag. It is NaN if there is no correlation, because the
    weight is constant or not finite. Medians and shares leave NaN out.

    Compare the result with `random_walk_null`: the median of pure random walks is not 0 but about 0.285.

    Args:
        delta: A tensor of the shape of a snapshot.
        mask: The final mask of these weights, to tell kept from pruned ones.
    """

    delta: Tensor
    mask: Tensor | None = None

    @property
    def undefined(self) -> int:
        """Count the weights without a correlation."""
        return int(self.delta.isnan().sum())

    @property
    def censored(self) -> float:
        """Return the share of weights whose correlation stays positive."""
        return float((self._defined() == 1).double().mean())

    @property
    def median(self) -> float:
        """Return the median over all weights; NaN if there is none."""
        return self.quantile(0.5)

    @property
    def kept(self) -> float:
        """Return the median over the weights that the mask keeps."""
        return self.quantile(0.5, self._mask())

    @property
    def pruned(self) -> float:
        """Return the median over the weights that the mask prunes."""
        return self.quantile(0.5, ~self._mask())

    def quantile(self, share: float, where: Tensor | None = None) -> float:
        """Return the value below which a share of the weights lies.

        Args:
            share: A fraction from 0 to 1.
            where: A boolean tensor that selects weights; by default all.

        Returns:
            The quantile of `delta`, or NaN if no selected weight has a correlation.
        """
        values = self._defined(where).sort().values
        return float(values[round(share * (len(values) - 1))]) if len(values) else float("nan")

    def by_magnitude(self, weight: Tensor, bins: int = 10) -> list[tuple[float, float]]:
        """Return the learning correlation of small and of large weights.

        Args:
            weight: The final values of these weights.
            bins: The number of bins. Each holds equally many weights, up to one, in the order of their magnitude.

        Returns:
            The mean magnitude and the median `delta` of each bin that holds a weight, smallest magnitudes first.

        Raises:
            ValueError: If the weight has another shape than a snapshot, or there is no bin.
        """
        if weight.shape != self.delta.shape or bins < 1:
            raise ValueError(
                f"The weight has the shape {tuple(weight.shape)} but a snapshot has {tuple(self.delta.shape)}, "
                f"and bins={bins}. Give the final values of the sampled weights, and bins=10."
            )
        magnitudes, order = weight.detach().abs().double().flatten().sort(stable=True)
        parts = zip(magnitudes.tensor_split(bins), self.delta.flatten()[order].tensor_split(bins), strict=True)
        return [(float(w.mean()), Learning(delta).median) for w, delta in parts if len(w)]

    def _defined(self, where: Tensor | None = None) -> Tensor:
        selected = self.delta.flatten() if where is None else self.delta[where]
        return selected[~selected.isnan()]

    def _mask(self) -> Tensor:
        if self.mask is None:
            raise ValueError("Kept and pruned weights can be told apart only with a mask; none was given. Give mask=.")
        return self.mask


def learning_correlation(
    snapshots: Tensor | Sequence[Tensor], mask: Tensor | None = None, lags: Sequence[int] | None = None
) -> Learning:
    """Measure how long weights keep their direction, from K evenly spaced snapshots of them.

    `delta` is the first lag at which the correlation is not positive, interpolated, divided by K - 1.

    Args:
        snapshots: A tensor whose first dimension is time, or a sequence of tensors of equal shape.
        mask: The final mask of these weights, to tell kept from pruned ones.
        lags: The lags to measure, as `LearningCorrelation` does; by default all.

    Returns:
        The learning correlation of each weight.

    Raises:
        ValueError: for fewer than 9 snapshots, for wrong lags, or for a mask of another shape.

    Example:
        >>> series = torch.tensor([0.0, 1, 2, 3, 2, 1, 0, -1, -2, -3, -2, -1])
        >>> round(learning_correlation(series).delta.item(), 6)
        0.33133
    """
    if not isinstance(snapshots, Tensor):
        snapshots = torch.stack(list(snapshots))
    count, shape = len(snapshots), snapshots.shape[1:]
    lags = usable_lags(list(range(1, count)) if lags is None else sorted_lags(lags), count)
    chunks = snapshots.detach().reshape(count, -1).split(SERIES_PER_CHUNK, dim=1)
    delta = torch.cat([first_crossing(*_correlate(chunk, lags), lags, count) for chunk in chunks])
    return make_learning(delta.view(shape), mask)


def autocorrelation(snapshots: Tensor, lags: Sequence[int]) -> Tensor:
    """Return the Pearson correlation of each series with itself at several lags.

    Args:
        snapshots: A tensor whose first dimension is time.
        lags: The lags to measure.

    Returns:
        A tensor [lags, ...]; NaN where a window is constant.

    Example:
        >>> rho = autocorrelation(torch.tensor([0.0, 1, 0, -1, 0, 1, 0, -1]), [2, 4])
        >>> [round(value, 6) for value in rho.tolist()]
        [-1.0, 1.0]
    """
    rho, _ = _correlate(snapshots.detach().reshape(len(snapshots), -1), lags)
    return rho.view(len(lags), *snapshots.shape[1:])


def random_walk_null(snapshots: int, weights: int = 2000, seed: int = 0, lags: Sequence[int] | None = None) -> Learning:
    """Return the learning correlation of pure random walks, as a baseline of weights that learn nothing.

    Args:
        snapshots: The number of snapshots, as of the training to compare with.
        weights: The number of random walks.
        seed: The seed of the walks; the global random state is not used.
        lags: As in `learning_correlation`.

    Example:
        >>> 0.2 < random_walk_null(400).median < 0.35
        True
    """
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(snapshots, weights, generator=generator, dtype=torch.float64)
    return learning_correlation(steps.cumsum(0), lags=lags)


# -- parts that the streaming form shares --------------------------------------------------------------------------


def make_learning(delta: Tensor, mask: Tensor | None) -> Learning:
    """Return a `Learning` after checking its mask.

    Args:
        delta: As in `Learning`.
        mask: A mask of any dtype, or None.

    Raises:
        ValueError: if the mask has not the shape of `delta`.
    """
    if mask is not None and mask.shape != delta.shape:
        raise ValueError(
            f"The mask has the shape {tuple(mask.shape)} but a snapshot has {tuple(delta.shape)}. "
            "Give the final mask of the sampled weights."
        )
    return Learning(delta, None if mask is None else mask != 0)


def sorted_lags(lags: Sequence[int]) -> list[int]:
    """Return the distinct lags in increasing order.

    Args:
        lags: Lags as a user gives them.

    Raises:
        ValueError: if there is none, or one is not a positive whole number.
    """
    if not len(lags) or any(type(lag) is not int or lag < 1 for lag in lags):
        raise ValueError(f"Lags must be whole numbers of at least 1; got {list(lags)!r}. Write range(1, 101).")
    return sorted(set(lags))


def usable_lags(lags: Sequence[int], count: int) -> list[int]:
    """Return the lags that leave enough points for a correlation.

    Args:
        lags: Lags in increasing order.
        count: The number of snapshots.

    Raises:
        ValueError: if there is none.
    """
    usable = [lag for lag in lags if lag <= count - MIN_POINTS]
    if not usable:
        needed = MIN_POINTS + (lags[0] if lags else 1)
        raise ValueError(f"This correlation needs at least {needed} snapshots; got {count}. Take them more often.")
    return usable


def pearson(points: Tensor, xy: Tensor, x: Tensor, y: Tensor, xx: Tensor, yy: Tensor, variance: Tensor) -> Tensor:
    """Return the correlation of two windows from their sums; NaN where one of them is constant up to rounding.

    Args:
        points: The number of points of a window.
        xy: The sum of products.
        x: The sum of the first window.
        y: The sum of the second window.
        xx: The sum of squares of the first window.
        yy: The sum of squares of the second window.
        variance: The sum of squared deviations of the whole series, to judge what is constant.
    """
    spread_x, spread_y = xx - x * x / points, yy - y * y / points
    rho = (xy - x * y / points) / (spread_x.clamp_min(0) * spread_y.clamp_min(0)).sqrt()
    return rho.masked_fill((spread_x <= CONSTANT * variance) | (spread_y <= CONSTANT * variance), torch.nan)


def first_crossing(rho: Tensor, defined: Tensor, lags: Sequence[int], count: int) -> Tensor:
    """Return the lag at which a correlation first is not positive, divided by count - 1.

    Args:
        rho: Correlations [lags, series].
        defined: Which series have correlations; the others get NaN.
        lags: The lags of the rows of `rho`; the result is interpolated between them.
        count: The number of snapshots.
    """
    tau = torch.tensor([0, *lags], dtype=rho.dtype, device=rho.device)
    rho = torch.cat([torch.ones_like(rho[:1]), rho])
    crossed = rho <= 0  # False where rho is NaN
    at = crossed.byte().argmax(0).clamp_min(1)
    after, before = rho.gather(0, at[None])[0], rho.gather(0, at[None] - 1)[0]
    lag = tau[at - 1] + (tau[at] - tau[at - 1]) * before / (before - after)
    return torch.where(crossed.any(0), lag / (count - 1), 1.0).masked_fill(~defined, torch.nan)


def _correlate(series: Tensor, lags: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the correlations [lags, series], by one Fourier transform, and which series have any."""
    count, index = len(series), torch.tensor(list(lags), dtype=torch.long, device=series.device)
    x = series.double()
    x = x - x[0]  # makes a constant series exactly 0
    defined = (x != 0).any(0) & x.isfinite().all(0)
    x = x - x.mean(0)
    spectrum = torch.fft.rfft(x, n=2 * count, dim=0)
    products = torch.fft.irfft(spectrum.abs().square(), n=2 * count, dim=0)[index]
    sums, squares = (torch.cat([v.new_zeros(1, v.shape[1]), v.cumsum(0)]) for v in (x, x * x))
    early_sum, early_squares = sums[count - index], squares[count - index]
    late_sum, late_squares = sums[-1] - sums[index], squares[-1] - squares[index]
    points = (count - index)[:, None]
    rho = pearson(points, products, early_sum, late_sum, early_squares, late_squares, squares[-1])
    return rho, defined
