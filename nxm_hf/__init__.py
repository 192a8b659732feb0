"""nxm_hf: fine-tune Hugging Face Transformers to N:M sparsity, and save them as plain safetensors."""

from nxm_hf import analysis
from nxm_hf._version import __version__
from nxm_hf.config import NxMConfig, SparsityRecord
from nxm_hf.distillation import DistillationConfig
from nxm_hf.engine import Engine, attach
from nxm_hf.permutation import permute
from nxm_hf.pruning import prune
from nxm_hf.rewind import rewind
from nxm_hf.storage import verify
from nxm_hf.trainer import AnalysisCallback, NxMCallback, NxMTrainer

__all__ = [
    "AnalysisCallback",
    "DistillationConfig",
    "Engine",
    "NxMCallback",
    "NxMConfig",
    "NxMTrainer",
    "SparsityRecord",
    "__version__",
    "analysis",
    "attach",
    "permute",
    "prune",
    "rewind",
    "verify",
]
