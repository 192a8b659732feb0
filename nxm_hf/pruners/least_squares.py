"""Refit: the best weights for a mask, by least squares on the outputs of the layer."""

import torch
from torch import Tensor

from nxm_hf.pruners.hessian import Curvature

STEPS = 500  # the tolerance ends it long before, but for rounding


def refit(weight: Tensor, mask: Tensor, start: Tensor, curvature: Curvature, tolerance: float) -> Tensor:
    """The V with V = 0 outside the mask that makes tr (W - V) H (W - V)^T least, to a share `tolerance` of it.

    Conjugate gradients on all rows at once, preconditioned by H^-1. For K the entries that a row keeps, H_KK^-1 is
    at most (H^-1)_KK, so r^T H^-1 r of the residual r bounds how far the cost is above the least one.
    """
    hessian, inverse = curvature.matrix.to(weight.dtype), curvature.inverse.to(weight.dtype)
    kept = mask.to(weight.dtype)
    found = start * kept
    residual = (lost := weight - found) @ hessian
    cost = (residual * lost).sum()
    nothing = torch.finfo(cost.dtype).eps * cost  # below this a cost is rounding
    residual.mul_(kept)
    ahead = torch.zeros_like(found)
    above = torch.ones_like(found[:, 0])
    for _ in range(STEPS):
        step = (residual @ inverse).mul_(kept)
        previous, above = above, (residual * step).sum(1)
        if above.sum() <= torch.maximum(tolerance * cost, nothing):
            break
        ahead = torch.addcmul(step, ahead, _ratio(above, previous))
        bent = (ahead @ hessian).mul_(kept)
        length = _ratio(above, (ahead * bent).sum(1))
        found.addcmul_(ahead, length)
        residual.addcmul_(bent, length, value=-1)
        cost -= (length.squeeze(1) * above).sum()
    return found


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """[rows, 1]: one over the other; 0 for a row that is done."""
    return torch.where(below > 0, above / below, 0).unsqueeze(1)
