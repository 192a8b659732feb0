"""Methods: how a dense weight becomes a sparse one while it trains. This list is the catalogue."""

from nxm_hf.methods.admm import ADMM
from nxm_hf.methods.base import STILL, Method, State, pruned_part, restore_dense
from nxm_hf.methods.dense import Dense
from nxm_hf.methods.masked import Masked
from nxm_hf.methods.phases import PHASES, Phases
from nxm_hf.methods.rewired import Rewired
from nxm_hf.methods.scores import SCORES
from nxm_hf.solvers.fused import keep

__all__ = [
    "ADMM",
    "PHASES",
    "SCORES",
    "STILL",
    "Dense",
    "Masked",
    "Method",
    "Phases",
    "Rewired",
    "State",
    "keep",
    "pruned_part",
    "restore_dense",
]
