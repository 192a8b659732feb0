"""Distillation: learn from a teacher as well as from the labels."""

from nxm_hf.distillation.loss import DistillationConfig

__all__ = ["DistillationConfig"]
