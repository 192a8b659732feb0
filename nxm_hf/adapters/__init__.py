"""Adapters of PEFT on sparse models: mask their delta, load them, and merge them into the base.

PEFT is not needed by the rest of the library, and is imported only where an adapter is met.
"""

from nxm_hf.adapters.loading import load_adapter
from nxm_hf.adapters.masked import mask_adapter
from nxm_hf.adapters.merging import MergeResult, merge_adapter

__all__ = ["MergeResult", "load_adapter", "mask_adapter", "merge_adapter"]
