"""Packed checkpoints: N:M weights as kept values and indices, in files and in memory."""

import transformers.modeling_utils  # noqa: F401  # first: when it is there, `nxm_hf.plugin` imports the quantizer

from nxm_hf.packing.file_names import INDICES, is_converted, keys_in_files, names_in_files, pieces_in_files
from nxm_hf.packing.format import PackedMatrix, check_packed, pack, row_pattern, unpack
from nxm_hf.packing.packed_linear import PackedLinear
from nxm_hf.packing.quantizer import NxMPackedConfig, NxMQuantizer, read_packed_config

__all__ = [
    "INDICES",
    "NxMPackedConfig",
    "NxMQuantizer",
    "PackedLinear",
    "PackedMatrix",
    "check_packed",
    "is_converted",
    "keys_in_files",
    "names_in_files",
    "pack",
    "pieces_in_files",
    "read_packed_config",
    "row_pattern",
    "unpack",
]
