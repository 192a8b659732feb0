"""Find the layers of a model to prune, and plan which pattern each one gets."""

from nxm_hf.layers.find import GROUPS, ROLES, Layer, find_layers, left_dense
from nxm_hf.layers.plan import Plan, Target

__all__ = ["GROUPS", "ROLES", "Layer", "Plan", "Target", "find_layers", "left_dense"]
