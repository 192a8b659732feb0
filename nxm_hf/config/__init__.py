"""What to prune and how (`NxMConfig`), and what a saved model says of itself."""

from nxm_hf.config.config import NxMConfig

__all__ = ["NxMConfig"]
