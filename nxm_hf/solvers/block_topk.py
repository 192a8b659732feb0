"""Exact for blocks: a block is worth its highest score, and the highest blocks are kept whole."""

from typing import Any

from torch import Tensor

from nxm_hf.solvers.unstructured_threshold import keep_highest


def by_blocks(scores: Tensor, pattern: Any) -> Tensor:
    """Keep the `pattern.kept_blocks(shape)` best blocks; of equal blocks the first, read row by row."""
    tiles = pattern.tiles(scores)  # (..., R, rows, C, cols)
    worth = tiles.amax((-3, -1))
    mask = keep_highest(worth.flatten(), pattern.kept_blocks(scores.shape)).view(worth.shape)
    return mask[..., :, None, :, None].expand(tiles.shape).reshape(scores.shape)
