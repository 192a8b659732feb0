"""Series of weights over time, and the learning correlation by its definition."""

import math

import torch

from nxm_hf import analysis


def naive(series: list[float], lags=None) -> float:
    """The definition, word by word, of one series."""
    count, tau, rho = len(series), 0, 1.0
    x = torch.tensor(series, dtype=torch.float64)
    if (x == x[0]).all():
        return math.nan
    for lag in lags or range(1, count):
        if count - lag < 8:
            break
        here = torch.corrcoef(torch.stack([x[: count - lag], x[lag:]]))[0, 1].item()
        if here <= 0:
            return (tau + (lag - tau) * rho / (rho - here)) / (count - 1)
        tau, rho = lag, here
    return 1.0


def stream(snapshots: torch.Tensor, lags) -> analysis.LearningCorrelation:
    found = analysis.LearningCorrelation(lags)
    for snapshot in snapshots:
        found.add(snapshot)
    return found


def some_series(count: int = 60) -> torch.Tensor:
    """White noise, walks, drifts, a constant far from zero and a weight that is pruned half-way: [count, 3, 4]."""
    noise = torch.randn(count, 12)
    series = noise.clone()
    series[:, 3:6] = noise[:, 3:6].cumsum(0)
    series[:, 6:9] += torch.linspace(0, 10, count)[:, None]
    series[:, 9] = 0.1
    series[count // 2 :, 10] = 0
    return (series * 1e-3 + 5).view(count, 3, 4)
