"""Permutation: channels in a better order for N:M, where that is free in a Transformer."""

from nxm_hf.permutation.permute import Permutation, PermutedLayer, permute

__all__ = ["Permutation", "PermutedLayer", "permute"]
