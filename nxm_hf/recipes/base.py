"""The catalogue of recipes: by name, with their settings, defaults and references."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nxm_hf import pruners
from nxm_hf.methods import Method
from nxm_hf.patterns import Pattern
from nxm_hf.settings import Registry

CALIBRATED_METHODS = tuple(name for name in pruners.names() if name != "magnitude")


@dataclass(frozen=True)
class CalibratedStart:
    """The method, and the phase that begins with what it has made of the weights.

    Where it is no `must`, a training that has no rows to show it goes by the recipe's own scores instead.
    """

    method: str
    phase: str
    required: bool = True


Recipe = Callable[..., Method]


class RecipeRegistry(Registry):
    """Recipes by name. A recipe is given the pattern first, then its settings."""

    def __init__(self, *recipes: Recipe):
        super().__init__("recipe", {recipe.__name__.replace("_", "-"): recipe for recipe in recipes}, positional=1)

    def settle(self, name: str, settings: dict[str, Any], warmup: float) -> float:
        """The fraction of training that a recipe with these settings settles for where the config sets none."""
        rule = getattr(self.find(name)[1], "settle", 0.0)
        return rule(warmup, **settings) if callable(rule) else rule

    def calibrated_start(self, name: str, settings: dict[str, Any]) -> CalibratedStart | None:
        """The method of `prune` that such a training has make the model sparse, and when; None if it has none."""
        rule = getattr(self.find(name)[1], "calibrated_start", None)
        return rule(**settings) if rule else None

    def needs_warmup(self, name: str, settings: dict[str, Any]) -> bool:
        """Whether a recipe with these settings can do nothing without dense steps before it."""
        rule = getattr(self.find(name)[1], "needs_warmup", None)
        return bool(rule and rule(**settings))

    def make(self, name: str, pattern: Pattern, settings: dict[str, Any]) -> Method:
        """The method of a recipe with these settings."""
        return super().make(name, pattern, **settings)
