"""Recipes: methods with a paper's settings. This table is the catalogue; a recipe not in it fails the tests."""

from nxm_hf.recipes.acdc import acdc
from nxm_hf.recipes.admm import admm
from nxm_hf.recipes.asp import asp
from nxm_hf.recipes.base import CalibratedStart, RecipeRegistry
from nxm_hf.recipes.dense import dense
from nxm_hf.recipes.fix import fix
from nxm_hf.recipes.gradual import gradual
from nxm_hf.recipes.mask_decay import mask_decay
from nxm_hf.recipes.regularize import regularize
from nxm_hf.recipes.reset import reset
from nxm_hf.recipes.rigl import rigl
from nxm_hf.recipes.set import set
from nxm_hf.recipes.sr_ste import sr_ste
from nxm_hf.recipes.ste import ste
from nxm_hf.recipes.structure_decay import structure_decay

RECIPES = RecipeRegistry(
    *(dense, asp, ste, sr_ste, fix, reset, regularize),
    *(mask_decay, structure_decay, admm, set, rigl, gradual, acdc),
)
names, make, settings, describe = RECIPES.names, RECIPES.make, RECIPES.settings, RECIPES.describe

__all__ = ["RECIPES", "CalibratedStart", "describe", "make", "names", "settings"]
