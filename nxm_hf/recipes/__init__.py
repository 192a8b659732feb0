"""Recipes: methods with a paper's settings. This table is the catalogue; a recipe not in it fails the tests."""

from nxm_hf.recipes.admm import admm
from nxm_hf.recipes.asp import asp
from nxm_hf.recipes.catalogue import Recipes
from nxm_hf.recipes.dense import dense
from nxm_hf.recipes.sr_ste import sr_ste
from nxm_hf.recipes.ste import ste

RECIPES = Recipes(dense, asp, ste, sr_ste, admm)
names, make, settings, describe = RECIPES.names, RECIPES.make, RECIPES.settings, RECIPES.describe

__all__ = ["RECIPES", "admm", "asp", "dense", "describe", "make", "names", "settings", "sr_ste", "ste"]
