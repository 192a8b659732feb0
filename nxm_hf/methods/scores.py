"""Scores: the importance of each entry of a weight, which decides what a mask keeps."""

from torch import Tensor

from nxm_hf.methods.schedules import Clock
from nxm_hf.patterns import Pattern

SCORES = ("magnitude", "fisher")
TINY = 1e-12  # ranks entries without any gradient by their magnitude


def best_mask(weight: Tensor, pattern: Pattern, scores: str, clock: Clock) -> Tensor:
    """Return the mask of the pattern that keeps the highest scores.

        magnitude   |W|
        fisher      |W| * sqrt(v),   v the optimizer's running mean of squared gradients

    v estimates the diagonal of the Fisher information. Pruning a weight raises the loss by about W^2 v, up to a
    constant factor. If the optimizer keeps no such mean for each entry, "fisher" falls back to magnitude.

    "magnitude" keeps the largest sum of scores, and "fisher" the largest sum of their squares, W^2 v. For
    N:M and unstructured patterns both are the same.

    Args:
        weight: The dense weight, of shape [out, in].
        pattern: The pattern that the mask holds.
        scores: "magnitude" or "fisher".
        clock: The clock that gives access to the optimizer's moments.

    Raises:
        ValueError: If a score is NaN.
    """
    squares = _squares(scores, clock)
    return pattern.largest(weight) if squares is None else pattern.nearest(_fisher(weight, squares))


def nearest_mask(weight: Tensor, pattern: Pattern, scores: str, clock: Clock) -> Tensor:
    """Return the mask of the pattern that keeps the largest sum of squared scores.

    Args:
        weight: The dense weight, of shape [out, in].
        pattern: The pattern that the mask holds.
        scores: "magnitude" or "fisher"; see `best_mask`.
        clock: The clock that gives access to the optimizer's moments.

    Raises:
        ValueError: If a score is NaN.
    """
    squares = _squares(scores, clock)
    return pattern.nearest(weight if squares is None else _fisher(weight, squares))


def as_mask(kept: Tensor | Pattern, tensor: Tensor) -> Tensor:
    """Return the second value of `kept_at_finish` as a mask.

    Args:
        kept: The mask; or a pattern, whose mask of the largest entries is meant.
        tensor: The first value.
    """
    return kept if isinstance(kept, Tensor) else kept.largest(tensor)


def scored(tensor: Tensor, scores: str, clock: Clock) -> Tensor:
    """Return the scores of a tensor: its magnitudes, in the metric of the optimizer's second moment for "fisher".

    Args:
        tensor: A tensor of the weight's shape.
        scores: "magnitude" or "fisher"; see `best_mask`.
        clock: The clock that gives access to the optimizer's moments.
    """
    squares = _squares(scores, clock)
    return tensor.detach().abs() if squares is None else _fisher(tensor.detach(), squares)


def _squares(scores: str, clock: Clock) -> Tensor | None:
    return clock.squares if scores == "fisher" else None


def _fisher(weight: Tensor, squares: Tensor) -> Tensor:
    return weight.abs() * squares.to(weight.dtype).sqrt().add_(TINY)
