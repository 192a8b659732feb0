"""Pruning without training: of a model in place, or of a saved model into another directory.

`prune` prunes a model block by block (`blockwise`), from statistics of the inputs of its layers (`input_statistics`).
These are collected by replaying its forward passes (`block_replay`). `directory` does that for a saved model. How one
layer is pruned is in `nxm_hf.pruners`.
"""

from nxm_hf.pruning.prune import prune
from nxm_hf.pruning.result import PrunedLayer, PruningResult

__all__ = ["PrunedLayer", "PruningResult", "prune"]
