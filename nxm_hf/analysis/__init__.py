"""Analysis: what masks, weights and recipes do, in numbers. Nothing here changes a model or its training."""

from nxm_hf.analysis.correlation import Learning, autocorrelation, learning_correlation, random_walk_null
from nxm_hf.analysis.diversity import mask_diversity
from nxm_hf.analysis.flops import TrainingFlops, training_flops
from nxm_hf.analysis.movement import flip_rate, mask_similarity
from nxm_hf.analysis.streaming import LearningCorrelation

__all__ = [
    "Learning",
    "LearningCorrelation",
    "TrainingFlops",
    "autocorrelation",
    "flip_rate",
    "learning_correlation",
    "mask_diversity",
    "mask_similarity",
    "random_walk_null",
    "training_flops",
]
