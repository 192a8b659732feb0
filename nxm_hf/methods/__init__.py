"""Methods: how a dense weight becomes a sparse one while it trains. This list is the registry of methods."""

from nxm_hf.methods.admm import ADMM
from nxm_hf.methods.base import NO_CHANGE, Measurement, Method, Slot, State, restore_dense
from nxm_hf.methods.dense import DenseTraining
from nxm_hf.methods.masked import Masked
from nxm_hf.methods.phases import PHASES, Phases
from nxm_hf.methods.rewire import Rewiring
from nxm_hf.methods.schedules import Clock, Schedule
from nxm_hf.methods.scores import SCORES, best_mask
from nxm_hf.solvers.masked_ops import pruned_part
from nxm_hf.solvers.weight_ops import keep

__all__ = [
    "ADMM",
    "NO_CHANGE",
    "PHASES",
    "SCORES",
    "Clock",
    "DenseTraining",
    "Masked",
    "Measurement",
    "Method",
    "Phases",
    "Rewiring",
    "Schedule",
    "Slot",
    "State",
    "best_mask",
    "keep",
    "pruned_part",
    "restore_dense",
]
