"""Recipes: methods with a paper's settings.

A recipe is a function that takes the pattern and its settings, and returns a method. `RECIPES` is the registry; a
recipe that is not in it fails the tests.
"""

from nxm_hf.recipes.acdc import acdc
from nxm_hf.recipes.admm import ADMM_RECIPE, admm
from nxm_hf.recipes.alps import ALPS_RECIPE, alps
from nxm_hf.recipes.asp import ASP_RECIPE, asp
from nxm_hf.recipes.base import CalibratedStart, Recipe, RecipeRegistry
from nxm_hf.recipes.dense import dense
from nxm_hf.recipes.fade import FADE_RECIPE, fade
from nxm_hf.recipes.fix import FIX_RECIPE, fix
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
    dense,
    ALPS_RECIPE,
    ASP_RECIPE,
    ste,
    sr_ste,
    FIX_RECIPE,
    reset,
    regularize,
    mask_decay,
    structure_decay,
    ADMM_RECIPE,
    FADE_RECIPE,
    set,
    rigl,
    gradual,
    acdc,
)
names, make, settings, describe = RECIPES.names, RECIPES.make, RECIPES.settings, RECIPES.describe

__all__ = [
    "RECIPES",
    "CalibratedStart",
    "Recipe",
    "RecipeRegistry",
    "acdc",
    "admm",
    "alps",
    "asp",
    "dense",
    "describe",
    "fade",
    "fix",
    "gradual",
    "make",
    "mask_decay",
    "names",
    "regularize",
    "reset",
    "rigl",
    "set",
    "settings",
    "sr_ste",
    "ste",
    "structure_decay",
]
