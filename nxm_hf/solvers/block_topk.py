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
    tiles = pattern.tiles(scores)  # (..., R, rows, C, cols)
    maxima = tiles.amax((-3, -1))
    mask = keep_highest(maxima.flatten(), pattern.kept_blocks(scores.shape)).view(maxima.shape)
    return mask[..., :, None, :, None].expand(tiles.shape).reshape(scores.shape)
