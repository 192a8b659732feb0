"""Curvature: what an error in the weights of a layer costs in its outputs, made safe to solve with."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nxm_hf.pruners.base import Inputs, OneShot, Pruned

CONSTANT = 1e-6  # an input whose variance is below this part of its square is constant, but for rounding


@dataclass(frozen=True)
class Curvature:
    """H of the cost || (W - W') X ||^2 = tr (W - W') H (W - W')^T of a layer, damped until it is positive definite.

    H is scaled to a mean diagonal of 1, and `damping` is then added to the diagonal: of weights that the tokens do not
    tell apart, those nearest to W cost least. All in fp64.
    """

    matrix: Tensor  # [in, in]
    factor: Tensor  # [in, in]: upper triangular, H^-1 = factor^T factor
    dead: Tensor  # [in]: inputs that carry nothing; their rows and columns are those of the identity

    @classmethod
    def of(cls, inputs: Inputs, damping: float, centred: bool) -> "Curvature":
        """The curvature of a layer's inputs; centred where a bias takes up the mean of what is lost."""
        matrix = inputs.gram.double()
        dead = (power := matrix.diagonal()) <= 0
        if centred:
            mean = inputs.mean.double()
            matrix = matrix - inputs.count * torch.outer(mean, mean)
            dead = dead | (matrix.diagonal() <= CONSTANT * power)
        matrix = matrix.masked_fill(dead[:, None] | dead, 0)
        alive = matrix.diagonal().sum() / (~dead).sum().clamp(min=1)
        matrix = (matrix + matrix.T).div_(2 * torch.where(alive > 0, alive, 1))
        matrix.diagonal().masked_fill_(dead, 1)
        return cls(*_factorised(matrix, damping), dead)

    @cached_property
    def inverse(self) -> Tensor:
        """H^-1."""
        return self.factor.T @ self.factor

    @cached_property
    def alone(self) -> Tensor:
        """[in]: 1 / H^-1_ii, the cost of taking 1 from a weight where all the others make up for it."""
        return 1 / self.factor.square().sum(0)

    def cost(self, lost: Tensor) -> Tensor:
        """[out]: what the loss of these weights costs each row, in the precision of the weights."""
        return ((lost @ self.matrix.to(lost.dtype)) * lost).sum(-1)


def _factorised(matrix: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """H with as much damping as it takes, and the upper triangular U with H^-1 = U^T U.

    Of H turned around, J H J = L L^T, the inverse of L turned around is U: no inverse has to be factorised.
    """
    while True:
        damped = matrix.clone()
        damped.diagonal().add_(damping)
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not failed:
            break
        damping = max(10 * damping, 1e-8)
    one = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return damped, torch.linalg.solve_triangular(lower, one, upper=False).flip(0, 1)


BIASES = ("after", "joint", "keep")


def curvature_of(method: OneShot, bias: Tensor | None, inputs: Inputs) -> Curvature:
    """The curvature for a method with the settings `damping` and `bias`.

    bias="joint" counts on the bias to take up the mean of what is lost, which is the least error on these tokens. But
    the mean of other text is another one; bias="after" fits the weights as if there was no bias, and moves it then.
    """
    return Curvature.of(inputs, method.damping, centred=method.bias == "joint" and bias is not None)


def with_bias(found: Pruned, method: OneShot, weight: Tensor, bias: Tensor | None, inputs: Inputs) -> Pruned:
    """What was found, with the bias that takes up the mean of what is lost, unless it stays as it is."""
    if bias is not None and method.bias != "keep":
        found.bias = bias + (weight - found.weight) @ inputs.mean.to(weight.dtype)
    return found
