"""Distillation: train a student on the outputs of a teacher as well as on the labels."""

from nxm_hf.distillation.loss import DistillationConfig

__all__ = ["DistillationConfig"]
