"""Sparse training with `transformers.Trainer`: a subclass and a callback."""

from nxm_hf.trainer.analysis_callback import AnalysisCallback
from nxm_hf.trainer.callback import NxMCallback
from nxm_hf.trainer.trainer import NxMTrainer

__all__ = ["AnalysisCallback", "NxMCallback", "NxMTrainer"]
