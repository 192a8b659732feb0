"""The Hessian of a layer's output error in its weights, damped and factorised, and the bias that goes with it."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nxm_hf.pruners.base import Inputs, PrunedWeight

CONSTANT_INPUT = 1e-6  # an input is constant if its variance is below this share of its mean square
STRIP = 256  # rows of the inverse that are computed at a time
BIAS_MODES = ("after", "joint", "keep")


@dataclass(frozen=True)
class Hessian:
    """The matrix H of a layer's output error || (W - W') X ||^2 = tr (W - W') H (W - W')^T, in fp64.

    H is scaled to a mean diagonal of 1 and damped until it is positive definite. Damping favours weights near W
    where the calibration tokens do not determine them.

    Args:
        matrix: H, [in, in].
        factor: The upper triangular U with H^-1 = U^T U, [in, in].
        dead: True for inputs that are always zero (or constant, if centred), [in]. Their rows and columns of H are
            those of the identity.
    """

    matrix: Tensor
    factor: Tensor
    dead: Tensor

    @classmethod
    def from_inputs(cls, inputs: Inputs, damping: float, centred: bool) -> "Hessian":
        """Compute the Hessian from the statistics of a layer's inputs.

        Args:
            inputs: Statistics of the inputs.
            damping: The value added to the diagonal, as a share of its mean; raised tenfold until H factorises.
            centred: Whether to subtract the mean of the inputs, for a bias that absorbs the mean error.

        Returns:
            The damped Hessian and its factor.
        """
        matrix = inputs.gram.double()
        power = matrix.diagonal()
        dead = power <= 0
        if centred:
            mean = inputs.mean.double()
            matrix = matrix - inputs.count * torch.outer(mean, mean)
            dead = dead | (matrix.diagonal() <= CONSTANT_INPUT * power)
        doubled = matrix + matrix.T  # as large as the layer is wide: from here on in place
        doubled.masked_fill_(dead[:, None] | dead, 0)
        scale = doubled.diagonal().sum() / (~dead).sum().clamp(min=1)
        doubled.div_(torch.where(scale > 0, scale, 2))
        doubled.diagonal().masked_fill_(dead, 1)
        damped, factor = _damp_and_factorise(doubled, damping)
        return cls(damped, factor, dead)

    @classmethod
    def for_bias_mode(cls, inputs: Inputs, damping: float, bias: Tensor | None, bias_mode: str) -> "Hessian":
        """Compute the Hessian that suits a pruner's setting `bias`.

        "joint" fits weights and bias together, which gives the least error on the calibration tokens. The mean of
        other text differs, however. "after" therefore fits the weights alone and moves the bias afterwards.

        Args:
            inputs: Statistics of the inputs.
            damping: See `from_inputs`.
            bias: The layer's bias, or None.
            bias_mode: One of `BIAS_MODES`.

        Returns:
            The Hessian, centred only for "joint" with a bias.
        """
        centred = bias_mode == "joint" and bias is not None
        return inputs.shared((cls, damping, centred), lambda: cls.from_inputs(inputs, damping, centred))

    def inverse(self, dtype: torch.dtype) -> Tensor:
        """Return H^-1, [in, in].

        Args:
            dtype: The type to compute in.
        """
        if dtype not in self._inverse:
            self._inverse[dtype] = _product_with_transpose(self.factor.to(dtype))
        return self._inverse[dtype]

    def scaled_eigen(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Return eigenvalues and eigenvectors of H scaled to a diagonal of 1, and the scale of each input.

        Args:
            dtype: The type to compute in.
        """
        if dtype not in self._eigen:
            scale = self.matrix.diagonal().sqrt()
            values, vectors = torch.linalg.eigh((self.matrix / torch.outer(scale, scale)).to(dtype))
            self._eigen[dtype] = values, vectors, scale.to(dtype)
        return self._eigen[dtype]

    @cached_property
    def _inverse(self) -> dict[torch.dtype, Tensor]:
        return {}

    @cached_property
    def _eigen(self) -> dict[torch.dtype, tuple[Tensor, Tensor, Tensor]]:
        return {}

    @cached_property
    def obs_cost(self) -> Tensor:
        """Return 1 / (H^-1)_ii, [in]: the cost of removing a weight of size 1 if all other weights compensate."""
        return 1 / self.factor.square().sum(0)

    def cost(self, lost: Tensor) -> Tensor:
        """Return the output error of each row.

        Args:
            lost: W - W', [out, in].

        Returns:
            The error of each row, [out], in the dtype of `lost`.
        """
        return ((lost @ self.matrix.to(lost.dtype)) * lost).sum(-1)


def correct_bias(
    pruned: PrunedWeight, weight: Tensor, bias: Tensor | None, inputs: Inputs, bias_mode: str
) -> PrunedWeight:
    """Set the bias that absorbs the mean of the output error, in place.

    Args:
        pruned: The pruned weight, whose bias is set.
        weight: The dense weight, [out, in].
        bias: The layer's bias, or None.
        inputs: Statistics of the inputs.
        bias_mode: One of `BIAS_MODES`; with "keep" the bias stays.

    Returns:
        `pruned`.
    """
    if bias is not None and bias_mode != "keep":
        pruned.bias = bias + (weight - pruned.weight) @ inputs.mean.to(weight.dtype)
    return pruned


def _product_with_transpose(factor: Tensor) -> Tensor:
    """Return U^T U for an upper triangular U. Entries below the diagonal are zero.

    The result is symmetric, so a strip of rows is computed from the diagonal on, and mirrored.
    """
    product = torch.empty_like(factor, memory_format=torch.contiguous_format)
    for begin in range(0, len(factor), STRIP):
        end = begin + STRIP
        torch.mm(factor[:end, begin:end].T, factor[:end, begin:], out=product[begin:end, begin:])
        product[end:, begin:end] = product[begin:end, end:].T
    return product


def _damp_and_factorise(matrix: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Add to the diagonal of H, in place, until it factorises; return it, and the upper triangular U with H^-1 = U^T U.

    With the rows and columns reversed by J, J H J = L L^T, and J L^-1 J = U. So H^-1 itself is never factorised.
    """
    diagonal = matrix.diagonal().clone()
    while True:
        matrix.diagonal().copy_(diagonal + damping)
        lower, failed = torch.linalg.cholesky_ex(matrix.flip(0, 1))
        if not failed:
            break
        damping = max(10 * damping, 1e-8)
    factor = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device).T  # in the order of LAPACK, columns first
    torch.linalg.solve_triangular(lower, factor, upper=False, out=factor)
    del lower
    return matrix, factor.flip(0, 1)
