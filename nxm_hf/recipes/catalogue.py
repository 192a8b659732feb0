"""The catalogue of recipes: by name, with their settings, defaults and references."""

from collections.abc import Callable
from typing import Any

from nxm_hf.catalogue import Catalogue
from nxm_hf.methods import Method
from nxm_hf.patterns import Pattern
from nxm_hf.recipes.by_data import PrunedBy

Recipe = Callable[..., Method]


class Recipes(Catalogue):
    """Recipes by name. A recipe is given the pattern first, then its settings."""

    def __init__(self, *recipes: Recipe):
        super().__init__("recipe", {recipe.__name__.replace("_", "-"): recipe for recipe in recipes}, given=1)

    def settle(self, name: str, settings: dict[str, Any], warmup: float) -> float:
        """The fraction of training that a recipe with these settings settles for where the config sets none."""
        rule = getattr(self.find(name)[1], "settle", 0.0)
        return rule(warmup, **settings) if callable(rule) else rule

    def pruned_by(self, name: str, settings: dict[str, Any]) -> PrunedBy | None:
        """The method of `prune` that such a training has make the model sparse, and when; None if it has none."""
        rule = getattr(self.find(name)[1], "pruned_by", None)
        return rule(**settings) if rule else None

    def needs_warmup(self, name: str, settings: dict[str, Any]) -> bool:
        """Whether a recipe with these settings can do nothing without dense steps before it."""
        rule = getattr(self.find(name)[1], "needs_warmup", None)
        return bool(rule and rule(**settings))

    def make(self, name: str, pattern: Pattern, settings: dict[str, Any]) -> Method:
        """The method of a recipe with these settings."""
        return super().make(name, pattern, **settings)
