"""One-shot pruning: one layer at a time, without training, from what calibration saw of its inputs.

`METHODS` is the catalogue. To add a method, add a file with its class and one line here.
"""

from nxm_hf.pruners.adaprune import AdaPrune
from nxm_hf.pruners.alps import ALPS
from nxm_hf.pruners.base import Inputs, OneShot, Pruned, output_error
from nxm_hf.pruners.magnitude import Magnitude
from nxm_hf.pruners.sparsegpt import SparseGPT
from nxm_hf.pruners.wanda import Wanda
from nxm_hf.settings import Registry

_KINDS = (Magnitude, Wanda, SparseGPT, AdaPrune, ALPS)
METHODS: dict[str, type[OneShot]] = {kind.__name__.lower(): kind for kind in _KINDS}
_CATALOGUE = Registry("method", METHODS)
names, make, settings, describe = _CATALOGUE.names, _CATALOGUE.make, _CATALOGUE.settings, _CATALOGUE.describe

__all__ = [
    "ALPS",
    "METHODS",
    "AdaPrune",
    "Inputs",
    "Magnitude",
    "OneShot",
    "Pruned",
    "SparseGPT",
    "Wanda",
    "describe",
    "make",
    "names",
    "output_error",
    "settings",
]
