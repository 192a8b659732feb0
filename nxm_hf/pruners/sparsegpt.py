"""SparseGPT: prune the columns from left to right, and let the columns to the right compensate."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nxm_hf.patterns import Block, Pattern
from nxm_hf.pruners.base import Inputs, OneShot, PrunedWeight, apply_mask, group_width
from nxm_hf.pruners.hessian import BIAS_MODES, Hessian, correct_bias
from nxm_hf.settings import at_least_zero, one_of

BLOCK = 128  # columns per block; the columns to the right of a block are updated once, after it


@dataclass(frozen=True)
class SparseGPT(OneShot):
    """Prune column by column; the columns that follow compensate for each error (optimal brain surgeon).

        e_i = (w_i - q_i) / U_ii,   w_j -= e_i U_ij for j > i,   H^-1 = U^T U,   H = X X^T + damping * mean(diag)

    Reference: Frantar and Alistarh, 2023, https://arxiv.org/abs/2301.00774
    Relations: gives the mask of `wanda` if H is diagonal. `adaprune` with scores="sparsegpt" starts from its result
    and finds the best weights for the mask.

    With groups (N:M, or the tiles of a transposable pattern), the mask of a group is chosen when the sweep reaches it.
    The scores are w_i^2 / U_ii^2. Without groups, the mask of the whole layer is chosen first, with the scores w_i^2 /
    [H^-1]_ii.

    Args:
        damping: The value added to the diagonal of H, as a share of its mean. The paper's 0.01 gives a lower error on
            the calibration tokens and a higher error on others.
        bias: "after": the bias absorbs the mean error at the end. "joint": the fit counts on that from the start.
            "keep" (the paper's): the bias does not change.
    """

    damping: float = 0.1
    bias: str = "after"

    def __post_init__(self) -> None:
        at_least_zero("sparsegpt", "damping", self.damping, example=0.1)
        one_of("sparsegpt", "bias", self.bias, BIAS_MODES)

    def prune(self, weight: Tensor, bias: Tensor | None, inputs: Inputs, pattern: Pattern) -> PrunedWeight:
        hessian = Hessian.for_bias_mode(inputs, self.damping, bias, self.bias)
        return correct_bias(obs_sweep(weight, hessian, pattern), weight, bias, inputs, self.bias)


def obs_sweep(weight: Tensor, hessian: Hessian, pattern: Pattern) -> PrunedWeight:
    """Choose a mask and compensate for the pruned weights, in one pass over the columns.

    Args:
        weight: The dense weight, [out, in].
        hessian: The Hessian of the output error.
        pattern: Where zeros may stand.

    Returns:
        The pruned and updated weight, without a new bias.
    """
    group = group_width(pattern)
    width = group or 1
    columns = torch.where(hessian.dead, 0, weight).T.contiguous()  # [in, out], so that a column is contiguous
    factor = hessian.factor.to(weight.dtype)
    mask = torch.zeros_like(columns, dtype=torch.bool)
    if not group:
        costs = columns.T.square() * hessian.obs_cost.to(weight.dtype)
        # The cost of a block is the sum of its costs, while `mask` counts the largest one only.
        mask.copy_((pattern.nearest(costs.sqrt()) if isinstance(pattern, Block) else pattern.mask(costs)).T)
    block = width * max(1, BLOCK // width)
    for begin in range(0, len(columns), block):
        end = min(begin + block, len(columns))
        errors = torch.empty_like(columns[begin:end])
        for i in range(begin, end):
            if group and i % width == 0:
                here = slice(i, i + width)
                scores = (columns[here] / factor.diagonal()[here, None]).square()
                mask[here] = pattern.mask(scores.T).T
            error = torch.where(mask[i], 0, columns[i]) / factor[i, i]
            columns[i + 1 : end].addr_(factor[i, i + 1 : end], error, alpha=-1)
            errors[i - begin] = error
        columns[end:] -= factor[begin:end, end:].T @ errors
    return apply_mask(columns.T.contiguous(), mask.T.contiguous())
