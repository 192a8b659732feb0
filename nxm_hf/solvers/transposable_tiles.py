"""Tiles of transposable patterns: views of scores, and their scores as integers, which add up without rounding."""

from collections.abc import Iterator

import torch
from torch import Tensor

FINITE, INFINITE = 2**40, 2**51  # an infinity outweighs the finite scores of a tile, 1024 at most, twice over
RESOLUTION = 2**20  # least mean of a tile's integers: rounding then costs less than 1e-6 of the optimum


def tiles(scores: Tensor, m: int, most: int) -> Iterator[Tensor]:
    """Yield views (m, m, ...) of parts of the m x m tiles of scores, or of a mask.

    Args:
        scores: Contiguous scores.
        m: Side of a tile.
        most: How many tiles a part has at most.
    """
    strips = scores.view(-1, m, scores.shape[-1] // m, m)
    for strip in strips.split(max(1, most // strips.shape[2])):
        for part in strip.split(most, 2):
            yield part.permute(1, 3, 0, 2)


def quantized(part: Tensor) -> tuple[Tensor, Tensor]:
    """Return tiles as int32, rounded to 2**-24 of their largest score or better.

    Args:
        part: Tiles, (m, m, count).

    Returns:
        The integers, and which tiles need `quantized_wide`. These are tiles with infinities, with scores below zero, or
        with one score that is far larger than the others.
    """
    m = len(part)
    exact = torch.float32 if part.is_floating_point() and part.dtype != torch.float64 else torch.float64
    part = part.to(exact)
    peak = part.amax((0, 1))
    wide = (part.amin((0, 1)) < 0) | peak.isinf()
    top = 2 ** (29 - (m - 1).bit_length())  # paths add up m of them
    shares = part.div(torch.where(wide | (peak == 0), 1, peak)).float()
    wide |= (shares.sum((0, 1)) * (top / m**2) < RESOLUTION) & (peak > 0)
    return torch.where(wide, shares.new_zeros(()), shares.mul_(top).round_()).int(), wide


def quantized_wide(part: Tensor) -> Tensor:
    """Return tiles of any scores as int64.

    Args:
        part: Tiles, (m, m, count).
    """
    part = part.double()
    infinite = part.isinf()
    finite = part.masked_fill(infinite, 0)
    peak = finite.abs().amax((0, 1))
    shares = finite.div_(torch.where(peak == 0, 1, peak)).mul_(FINITE).round_().long()
    return shares + infinite * part.sign().nan_to_num_().long() * INFINITE
