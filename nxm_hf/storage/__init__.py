"""Read, write and check the files of sparse models and their checkpoints."""

from nxm_hf.storage.verify import Verification, verify

__all__ = ["Verification", "verify"]
