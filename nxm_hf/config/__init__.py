"""Configuration: `NxMConfig` chooses what to prune and how, `SparsityRecord` describes a saved sparse model."""

from nxm_hf.config.config import NxMConfig
from nxm_hf.config.hub import CONFIG_FILE, MODEL_CONFIG_KEY
from nxm_hf.config.record import SparsityRecord

__all__ = ["CONFIG_FILE", "MODEL_CONFIG_KEY", "NxMConfig", "SparsityRecord"]
