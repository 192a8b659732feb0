"""Permutation: reorder the channels of a Transformer so that N:M masks keep more, without changing its outputs."""

from nxm_hf.permutation.permute import Permutation, PermutedLayer, permute

__all__ = ["Permutation", "PermutedLayer", "permute"]
