"""Packed checkpoints: N:M weights as kept values and indices, in files and in memory."""

from nxm_hf.packing.format import PackedMatrix, check_packed, pack, row_pattern, unpack
from nxm_hf.packing.packed_linear import PackedLinear

__all__ = ["PackedLinear", "PackedMatrix", "check_packed", "pack", "row_pattern", "unpack"]
