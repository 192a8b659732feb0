"""Exact for blocks: a block counts as much as its highest score, and the highest blocks are kept as a whole."""

from torch import Tensor

from nxm_hf.solvers.base import BlockPattern
from nxm_hf.solvers.unstructured_threshold import keep_highest


def by_block_topk(scores: Tensor, pattern: BlockPattern) -> Tensor:
    """Keep the blocks with the highest maxima; of equal blocks the first, read row by row.

    Args:
        scores: The scores.
        pattern: The block pattern.
    """
    maxima = block_maxima(scores, pattern)
    kept = keep_highest(maxima.flatten(), pattern.kept_blocks(scores.shape)).view(maxima.shape)
    return fill_blocks(kept, scores, pattern)


def block_maxima(scores: Tensor, pattern: BlockPattern) -> Tensor:
    """Return the highest score of each block, (..., R, C).

    Args:
        scores: The scores.
        pattern: The block pattern.
    """
    return pattern.tiles(scores).amax((-3, -1))


def fill_blocks(kept: Tensor, like: Tensor, pattern: BlockPattern) -> Tensor:
    """Return the mask that keeps whole blocks.

    Args:
        kept: True for each block to keep, (..., R, C).
        like: A tensor of the shape of the mask.
        pattern: The block pattern.
    """
    shape = pattern.tiles(like).shape  # (..., R, rows, C, cols)
    return kept[..., :, None, :, None].expand(shape).reshape(like.shape)
