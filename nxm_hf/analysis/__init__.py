"""Analysis: measures of masks, weights and recipes. Nothing here changes a model or its training."""

from nxm_hf.analysis.correlation import Learning, autocorrelation, learning_correlation, random_walk_null
from nxm_hf.analysis.diversity import mask_diversity
from nxm_hf.analysis.flops import TrainingFlops, training_flops
from nxm_hf.analysis.mask_change import flip_rate, mask_similarity
from nxm_hf.analysis.memory import TrainingMemory, state_bytes, training_memory
from nxm_hf.analysis.solver_comparison import SolverComparison, SolverResult, compare_solvers
from nxm_hf.analysis.streaming_correlation import LearningCorrelation

__all__ = [
    "Learning",
    "LearningCorrelation",
    "SolverComparison",
    "SolverResult",
    "TrainingFlops",
    "TrainingMemory",
    "autocorrelation",
    "compare_solvers",
    "flip_rate",
    "learning_correlation",
    "mask_diversity",
    "mask_similarity",
    "random_walk_null",
    "state_bytes",
    "training_flops",
    "training_memory",
]
