"""Scores: what the weights of a layer are worth when some of them have to go."""

from torch import Tensor

from nxm_hf.methods.schedules import Clock
from nxm_hf.patterns import Pattern

SCORES = ("magnitude", "fisher")
TINY = 1e-12  # of weights that have had no gradient, the larger is worth more


def worthiest(weight: Tensor, pattern: Pattern, scores: str, clock: Clock) -> Tensor:
    """The mask that keeps the highest scores.

        magnitude   |W|
        fisher      |W| * sqrt(v),   v the optimizer's running mean of squared gradients

    v estimates the diagonal of the Fisher information, so W^2 v is what the loss is expected to rise by without a
    weight, but for a factor. An optimizer that keeps no such mean for each weight leaves magnitude to choose.
    """
    squares = clock.squares if scores == "fisher" else None
    if squares is None:
        return pattern.largest(weight)
    return pattern.mask(weight.abs() * squares.to(weight.dtype).sqrt().add_(TINY))
