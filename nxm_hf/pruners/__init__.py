"""One-shot pruning of one layer, without training, from statistics of its inputs.

`METHODS` is the registry. To add a method, add a file with its class and one line here.
"""

from nxm_hf.pruners.adaprune import AdaPrune
from nxm_hf.pruners.alps import ALPS
from nxm_hf.pruners.base import Inputs, OneShot, PrunedWeight, output_error
from nxm_hf.pruners.magnitude import Magnitude
from nxm_hf.pruners.sparsegpt import SparseGPT
from nxm_hf.pruners.wanda import Wanda
from nxm_hf.settings import Registry

METHODS: dict[str, type[OneShot]] = {
    "magnitude": Magnitude,
    "wanda": Wanda,
    "sparsegpt": SparseGPT,
    "adaprune": AdaPrune,
    "alps": ALPS,
}
_REGISTRY = Registry("method", METHODS)
names = _REGISTRY.names
make = _REGISTRY.make
settings = _REGISTRY.settings
describe = _REGISTRY.describe

__all__ = [
    "ALPS",
    "METHODS",
    "AdaPrune",
    "Inputs",
    "Magnitude",
    "OneShot",
    "PrunedWeight",
    "SparseGPT",
    "Wanda",
    "describe",
    "make",
    "names",
    "output_error",
    "settings",
]
