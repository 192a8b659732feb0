"""Read, write and check the files of sparse models and their checkpoints."""

from nxm_hf.storage.packed_directory import PackingResult, save_packed
from nxm_hf.storage.verify import Verification, verify

__all__ = ["PackingResult", "Verification", "save_packed", "verify"]
