"""nxm_hf: fine-tune Hugging Face Transformers to N:M sparsity, and ship them as plain safetensors."""

from nxm_hf import analysis
from nxm_hf.callback import AnalysisCallback, NxMCallback
from nxm_hf.config import NxMConfig
from nxm_hf.distillation import Distillation
from nxm_hf.engine import Engine
from nxm_hf.loops import attach
from nxm_hf.permutation import permute
from nxm_hf.pruning import prune
from nxm_hf.rewinding import rewind
from nxm_hf.trainer import NxMTrainer
from nxm_hf.verification import verify
from nxm_hf.version import __version__

__all__ = [
    "AnalysisCallback",
    "Distillation",
    "Engine",
    "NxMCallback",
    "NxMConfig",
    "NxMTrainer",
    "__version__",
    "analysis",
    "attach",
    "permute",
    "prune",
    "rewind",
    "verify",
]
