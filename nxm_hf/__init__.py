"""nxm_hf: fine-tune Hugging Face Transformers to N:M sparsity, and save them as plain safetensors."""

from nxm_hf import analysis, methods, patterns, pruners, recipes, solvers
from nxm_hf._version import __version__
from nxm_hf.config import NxMConfig, SparsityRecord
from nxm_hf.distillation import DistillationConfig
from nxm_hf.engine import Engine, attach
from nxm_hf.inference import InferenceReport, to_inference
from nxm_hf.permutation import Permutation, permute
from nxm_hf.pruning import PruningResult, prune
from nxm_hf.rewind import rewind
from nxm_hf.storage import Verification, verify
from nxm_hf.trainer import AnalysisCallback, NxMCallback, NxMTrainer

__all__ = [
    "AnalysisCallback",
    "DistillationConfig",
    "Engine",
    "InferenceReport",
    "NxMCallback",
    "NxMConfig",
    "NxMTrainer",
    "Permutation",
    "PruningResult",
    "SparsityRecord",
    "Verification",
    "__version__",
    "analysis",
    "attach",
    "methods",
    "patterns",
    "permute",
    "prune",
    "pruners",
    "recipes",
    "rewind",
    "solvers",
    "to_inference",
    "verify",
]
