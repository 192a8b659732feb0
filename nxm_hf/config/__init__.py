"""What to prune and how (`NxMConfig`), and what a saved model says of itself (`SparsityRecord`)."""

from nxm_hf.config.config import NxMConfig
from nxm_hf.config.hub import CONFIG_FILE, MODEL_CONFIG_KEY
from nxm_hf.config.record import SparsityRecord

__all__ = ["CONFIG_FILE", "MODEL_CONFIG_KEY", "NxMConfig", "SparsityRecord"]
