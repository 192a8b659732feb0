"""Pruning without training: a model made sparse in place, or a directory into another one.

`models` prunes a model block by block (`blockwise`), from what a `walk` through it sees of the inputs of its layers;
`conversion` does that for a saved model. How one layer is pruned is in `nxm_hf.pruners`.
"""

from nxm_hf.pruning.prune import prune

__all__ = ["prune"]
