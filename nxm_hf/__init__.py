"""nxm_hf: fine-tune Hugging Face Transformers to N:M sparsity, and save them as plain safetensors.

Names are imported when they are first used, so that `import nxm_hf` takes no time: it imports neither torch nor
transformers.
"""

from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from nxm_hf._version import __version__
from nxm_hf.plugin import register_with_transformers

if TYPE_CHECKING:
    from nxm_hf import analysis, methods, patterns, pruners, recipes, solvers
    from nxm_hf.adapters import MergeResult, load_adapter, mask_adapter, merge_adapter
    from nxm_hf.config import NxMConfig, SparsityRecord
    from nxm_hf.distillation import DistillationConfig
    from nxm_hf.engine import Engine
    from nxm_hf.engine.adamw import AdamW
    from nxm_hf.engine.attach import attach
    from nxm_hf.inference import InferenceReport
    from nxm_hf.inference.conversion import to_inference
    from nxm_hf.inference.loading import NxMInference
    from nxm_hf.packing import NxMPackedConfig, PackedLinear
    from nxm_hf.permutation import Permutation
    from nxm_hf.permutation.permute import permute
    from nxm_hf.pruning import PruningResult
    from nxm_hf.pruning.perplexity import Perplexity, perplexity
    from nxm_hf.pruning.prune import prune
    from nxm_hf.rewinding import rewind
    from nxm_hf.storage import Verification
    from nxm_hf.storage.packed_directory import PackingResult, save_packed
    from nxm_hf.storage.verify import verify
    from nxm_hf.trainer import AnalysisCallback, NxMCallback, NxMTrainer

__all__ = [
    "AdamW",
    "AnalysisCallback",
    "DistillationConfig",
    "Engine",
    "InferenceReport",
    "MergeResult",
    "NxMCallback",
    "NxMConfig",
    "NxMInference",
    "NxMPackedConfig",
    "NxMTrainer",
    "PackedLinear",
    "PackingResult",
    "Permutation",
    "Perplexity",
    "PruningResult",
    "SparsityRecord",
    "Verification",
    "__version__",
    "analysis",
    "attach",
    "load_adapter",
    "mask_adapter",
    "merge_adapter",
    "methods",
    "patterns",
    "permute",
    "perplexity",
    "prune",
    "pruners",
    "recipes",
    "rewind",
    "save_packed",
    "solvers",
    "to_inference",
    "verify",
]

# The names above that are no modules, by the module that they are imported from. The block for type checkers says the
# same; `tests/plugin/test_lazy_names.py` compares them.
_NAMES = {
    "adapters": ("MergeResult", "load_adapter", "mask_adapter", "merge_adapter"),
    "config": ("NxMConfig", "SparsityRecord"),
    "distillation": ("DistillationConfig",),
    "engine": ("Engine",),
    "engine.adamw": ("AdamW",),
    "engine.attach": ("attach",),
    "inference": ("InferenceReport",),
    "inference.conversion": ("to_inference",),
    "inference.loading": ("NxMInference",),
    "packing": ("NxMPackedConfig", "PackedLinear"),
    "permutation": ("Permutation",),
    "permutation.permute": ("permute",),
    "pruning": ("PruningResult",),
    "pruning.perplexity": ("Perplexity", "perplexity"),
    "pruning.prune": ("prune",),
    "rewinding": ("rewind",),
    "storage": ("Verification",),
    "storage.packed_directory": ("PackingResult", "save_packed"),
    "storage.verify": ("verify",),
    "trainer": ("AnalysisCallback", "NxMCallback", "NxMTrainer"),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

if not TYPE_CHECKING:  # a type checker that sees __getattr__ would accept every name

    def __getattr__(name: str) -> object:
        """Import a name when it is first used."""
        if name in _MODULES:
            globals()[name] = value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
            return value
        if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
            return import_module(f"{__name__}.{name}")
        near = get_close_matches(name, __all__, n=1, cutoff=0.7)
        hint = f". Did you mean {near[0]}?" if near else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted({*globals(), *__all__})


register_with_transformers()
