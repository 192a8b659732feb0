"""The best weights for a mask, by least squares on the outputs of the layer."""

import torch
from torch import Tensor

from nxm_hf.pruners.hessian import Hessian

MAX_ITERATIONS = 500  # the tolerance is reached long before, unless rounding prevents it


def least_squares(weight: Tensor, mask: Tensor, start: Tensor, hessian: Hessian, tolerance: float) -> Tensor:
    """Minimise tr (W - V) H (W - V)^T over all V that are zero outside the mask.

    Conjugate gradients on all rows at once, preconditioned by H^-1.

    Args:
        weight: The dense weight W, [out, in].
        mask: True where V may be non-zero, [out, in].
        start: The V to start from; entries outside the mask are ignored.
        hessian: H.
        tolerance: Stop once the cost is at most this share above its minimum.

    Returns:
        V, [out, in].
    """
    matrix, inverse = hessian.matrix.to(weight.dtype), hessian.inverse(weight.dtype)
    kept = mask.to(weight.dtype)
    solution = start * kept
    lost = weight - solution
    residual = lost @ matrix
    cost = (residual * lost).sum()
    rounding = torch.finfo(cost.dtype).eps * cost
    residual.mul_(kept)
    direction = torch.zeros_like(solution)
    excess = torch.ones_like(solution[:, 0])
    for _ in range(MAX_ITERATIONS):
        step = (residual @ inverse).mul_(kept)
        # For K the kept entries of a row, H_KK^-1 <= (H^-1)_KK. So r^T H^-1 r bounds the cost above the minimum.
        previous, excess = excess, (residual * step).sum(1)
        if excess.sum() <= torch.maximum(tolerance * cost, rounding):
            break
        direction = torch.addcmul(step, direction, _ratio(excess, previous))
        image = (direction @ matrix).mul_(kept)
        length = _ratio(excess, (direction * image).sum(1))
        solution.addcmul_(direction, length)
        residual.addcmul_(image, length, value=-1)
        cost -= (length.squeeze(1) * excess).sum()
    return solution


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return numerator / denominator as [rows, 1], and 0 for a row that has converged (denominator 0)."""
    return torch.where(denominator > 0, numerator / denominator, 0).unsqueeze(1)
