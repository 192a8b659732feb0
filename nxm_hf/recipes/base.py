"""The dataclass `Recipe`, and the registry that finds recipes by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nxm_hf import pruners
from nxm_hf.methods import Method
from nxm_hf.patterns import Pattern
from nxm_hf.settings import Registry

CALIBRATED_METHODS = tuple(name for name in pruners.names() if name != "magnitude")

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class CalibratedStart:
    """A request to prune the model with calibration data when a phase of training begins.

    Args:
        method: The pruning method, a name of `nxm_hf.pruners.names()`.
        phase: The phase that continues from the pruned weights: "recipe" or "settle".
        required: If False and no calibration rows are available, fall back to the recipe's own scores.
        preview: Whether the deployed view prunes by this method before that phase too, as the training will.
        without_data: The config to write for a training that prunes by "fisher", without calibration data.
    """

    method: str
    phase: str
    required: bool = True
    preview: bool = False
    without_data: str = field(
        default='NxMConfig("asp", settings={"scores": "fisher"}, warmup=0.5)', compare=False, repr=False
    )


@dataclass(frozen=True)
class Recipe:
    """A method with a paper's settings, and its defaults for the training around it.

    The rules are functions of all settings of the recipe, defaults included.

    Args:
        make: The function that makes the method from a pattern and the settings. Its arguments after the pattern are
            the settings of the recipe, and its docstring is the data sheet.
        settle: The default fraction of training with a frozen mask: a number, or a function of the settings and the
            warm-up fraction.
        calibrated_start: The rule for pruning with calibration data; None if the recipe never needs it.
        needs_warmup: The rule that tells if the recipe needs dense steps first; None if it never does.
        early: Steps by which the mask is frozen before the `settle` fraction of training begins.
        warmup: The default fraction of training that is dense first. It is at most half of the steps before the
            frozen-mask phase.

    Example:
        >>> from nxm_hf.recipes.ste import ste
        >>> Recipe(ste, settle=0.5).name
        'ste'
    """

    make: Callable[..., Method]
    settle: float | Callable[[Settings, float], float] = 0.0
    calibrated_start: Callable[[Settings], CalibratedStart | None] | None = None
    needs_warmup: Callable[[Settings], bool] | None = None
    early: int = 0
    warmup: float = 0.0

    @property
    def name(self) -> str:
        """Return the name of the recipe: that of its function, spelled with hyphens."""
        return self.make.__name__.replace("_", "-")


class RecipeRegistry:
    """The recipes by name. Names are spelled with hyphens; underscores are accepted.

    Args:
        recipes: Recipes, or functions that make a method; such a function is registered as `Recipe(function)`.
    """

    def __init__(self, *recipes: Recipe | Callable[..., Method]):
        entries = [recipe if isinstance(recipe, Recipe) else Recipe(recipe) for recipe in recipes]
        self._recipes = {recipe.name: recipe for recipe in entries}
        # The first argument of a recipe's function is the pattern, which is not a setting.
        self._makers = Registry("recipe", {recipe.name: recipe.make for recipe in entries}, 1)

    def names(self) -> list[str]:
        """Return the names of all recipes, in the order of registration."""
        return self._makers.names()

    def find(self, name: str) -> tuple[str, Recipe]:
        """Return the canonical name of a recipe, and the recipe.

        Args:
            name: A name in any accepted spelling.

        Raises:
            ValueError: If there is no such recipe; the message suggests the nearest name.
        """
        name, _ = self._makers.find(name)
        return name, self._recipes[name]

    def settings(self, name: str) -> dict[str, Any]:
        """Return the settings of a recipe and their defaults.

        Args:
            name: The name of a recipe.
        """
        return self._makers.settings(name)

    def describe(self, name: str) -> tuple[str, str]:
        """Return the first line of a recipe's data sheet, and its reference.

        Args:
            name: The name of a recipe.
        """
        return self._makers.describe(name)

    def make(self, name: str, pattern: Pattern, settings: Settings) -> Method:
        """Return the method of a recipe.

        Args:
            name: The name of a recipe.
            pattern: The pattern that the weight shall hold at the end.
            settings: The settings that differ from their defaults.

        Raises:
            ValueError: If a setting is unknown or has a wrong value.
        """
        return self._makers.make(name, pattern, **settings)

    def settle(self, name: str, settings: Settings, warmup: float) -> float:
        """Return the fraction of training with a frozen mask, for a config that sets none.

        Args:
            name: The name of a recipe.
            settings: The settings that differ from their defaults.
            warmup: The fraction of training that is dense first.
        """
        rule = self.find(name)[1].settle
        return rule(self._with_defaults(name, settings), warmup) if callable(rule) else rule

    def calibrated_start(self, name: str, settings: Settings) -> CalibratedStart | None:
        """Return how a training with these settings prunes with calibration data, or None if it does not.

        Args:
            name: The name of a recipe.
            settings: The settings that differ from their defaults.
        """
        rule = self.find(name)[1].calibrated_start
        return rule(self._with_defaults(name, settings)) if rule else None

    def needs_warmup(self, name: str, settings: Settings) -> bool:
        """Return True if a recipe with these settings needs dense steps before it.

        Args:
            name: The name of a recipe.
            settings: The settings that differ from their defaults.
        """
        rule = self.find(name)[1].needs_warmup
        return rule is not None and rule(self._with_defaults(name, settings))

    def _with_defaults(self, name: str, settings: Settings) -> dict[str, Any]:
        return {**self.settings(name), **settings}


def check_preview(name: str, preview: bool, method: str | None) -> None:
    """Check the setting `preview` of a recipe.

    Args:
        name: The name of the recipe.
        preview: The value of the setting.
        method: The method that prunes with rows of the training data, or None if the recipe is not to use one.

    Raises:
        ValueError: If the value is not a bool, or if there is no such method.
    """
    if not isinstance(preview, bool):
        raise ValueError(f"preview of {name} must be True or False; got {preview!r}. Write preview=True.")
    if preview and method is None:
        methods = ", ".join(map(repr, CALIBRATED_METHODS))
        raise ValueError(
            f"preview=True of {name} needs scores that prune with training data. "
            f'Write scores="alps" beside it (or another of {methods}), or leave preview out.'
        )
