"""SparseGPT: prune from left to right, and let what is still to come make up for it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nxm_hf.patterns import Pattern
from nxm_hf.pruners.base import Inputs, OneShot, Pruned, groups_of, masked
from nxm_hf.pruners.hessian import BIASES, Curvature, curvature_of, with_bias
from nxm_hf.settings import at_least_zero, one_of

BLOCK = 128  # columns after which the columns further right are brought up to date


@dataclass(frozen=True)
class SparseGPT(OneShot):
    """Prune column by column; each loss is made up for by the columns that follow, as second-order theory says.

        e_i = (w_i - q_i) / U_ii,   w_j -= e_i U_ij for j > i,   H^-1 = U^T U,   H = X X^T + damping * mean(diag)

    Reference: Frantar and Alistarh, 2023, https://arxiv.org/abs/2301.00774
    Relations: the mask of `wanda` where H is diagonal; `adaprune` with scores="sparsegpt" goes on from here to the best
    weights for the mask. The mask is chosen by w_i^2 / U_ii^2 where the sweep enters a group (N:M, or the tiles of a
    transposable pattern); where the pattern has no groups, by w_i^2 / [H^-1]_ii for the whole layer before it starts.
    The paper has damping=0.01, better on the tokens that were seen and worse on others, and bias="keep"; with "after"
    the bias takes up the mean of what is lost, and "joint" counts on that from the start.
    """

    damping: float = 0.1
    bias: str = "after"

    def __post_init__(self) -> None:
        at_least_zero("sparsegpt", "damping", self.damping, example=0.1)
        one_of("sparsegpt", "bias", self.bias, BIASES)

    def prune(self, weight: Tensor, bias: Tensor | None, inputs: Inputs, pattern: Pattern) -> Pruned:
        found = sweep(weight, curvature_of(self, bias, inputs), pattern)
        return with_bias(found, self, weight, bias, inputs)


def sweep(weight: Tensor, curvature: Curvature, pattern: Pattern) -> Pruned:
    """Choose a mask and make up for what it prunes, in one pass over the columns."""
    groups = groups_of(pattern)
    width = groups or 1
    rows = torch.where(curvature.dead, 0, weight).T.contiguous()  # [in, out]: a column of the weight is one piece
    factor = curvature.factor.to(weight.dtype)
    mask = torch.zeros_like(rows, dtype=torch.bool)
    if not groups:
        mask.copy_(pattern.mask(rows.T.square() * curvature.alone.to(weight.dtype)).T)
    block = width * max(1, BLOCK // width)
    for begin in range(0, len(rows), block):
        end = min(begin + block, len(rows))
        lost = torch.empty_like(rows[begin:end])
        for column in range(begin, end):
            if groups and column % width == 0:
                here = slice(column, column + width)
                scores = (rows[here] / factor.diagonal()[here, None]).square()
                mask[here] = pattern.mask(scores.T).T
            error = torch.where(mask[column], 0, rows[column]) / factor[column, column]
            rows[column + 1 : end].addr_(factor[column, column + 1 : end], error, alpha=-1)
            lost[column - begin] = error
        rows[end:] -= factor[begin:end, end:].T @ lost
    return masked(rows.T.contiguous(), mask.T.contiguous())
