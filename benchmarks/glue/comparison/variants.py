"""Variants: the trainings that are compared. Recipes as written, sweeps over a setting, and the grid points of each."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from nxm_hf import NxMConfig, recipes

from .options import option_value, suggestion, without_budget
from .recipe_text import accepts, free_settings, is_small, read_recipe
from .trials import Point

Grid = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Variant:
    """A recipe, with a budget and options of its own where they differ from those of the other variants."""

    recipe: str
    budget: Point = ()
    more: tuple[str, ...] | None = None  # replaces the options that all other variants share


@dataclass(frozen=True)
class Sweep:
    """A setting, the values to try, and the recipe to try them with if none of the given ones has the setting."""

    setting: str
    values: tuple[str, ...]
    recipe: str = ""


SWEEPS = {
    "rho": Sweep("rho", ("1e-3", "3e-3", "1e-2", "3e-2", "1e-1"), "admm"),
    "refresh": Sweep("refresh", ("1", "10", "100", "1000"), "sr-ste"),
    "grad_scale": Sweep("grad_scale", ("0.0", "0.1", "0.3", "1.0"), "ste"),
    "reset": Sweep("every", ("10", "30", "100", "300", "1000"), "reset"),
    "density": Sweep("pattern", ("1:8", "1:4", "2:4", "3:4", "4:8", "2:4-transposable", "unstructured:0.5"), "asp"),
    "budget": Sweep("budget", ("0.25", "0.5", "1", "2")),  # times the given budget
}


def read_grid(texts: Sequence[str]) -> dict[str, Sequence[str]]:
    """Return the values of each key of a grid.

    Args:
        texts: One `key=a,b,c` for each key. `sparsity.rho` is the same as `rho`.

    Raises:
        ValueError: A text does not have that form.

    Example:
        >>> read_grid(["learning_rate=1,2", "sparsity.rho=0.01"])
        {'learning_rate': ['1', '2'], 'rho': ['0.01']}
    """
    grid: dict[str, Sequence[str]] = {}
    for text in texts:
        key, _, values = text.partition("=")
        if not key or not all(values.split(",")):
            raise ValueError(f"--grid {text!r} is not of the form learning_rate=3e-5,1e-4; write the values after '='.")
        grid[key.removeprefix("sparsity.")] = values.split(",")
    return grid


def points_of_grid(grid: Grid, recipe: str) -> list[Point]:
    """Return every combination of values, for the keys that a recipe has a use for.

    Args:
        grid: The values of each key.
        recipe: The recipe.

    Example:
        >>> points_of_grid({"learning_rate": ["1", "2"], "rho": ["0.01"]}, "dense")
        [(('learning_rate', '1'),), (('learning_rate', '2'),)]
    """
    axes = [[(key, value) for value in values] for key, values in grid.items() if accepts(recipe, key)]
    return list(itertools.product(*axes))


def check_small_baseline(texts: Sequence[str], options: Sequence[str]) -> None:
    """Check that the baseline `small` is only compared with models that are trained from scratch.

    Args:
        texts: The recipes that are compared.
        options: The options that all trials share.

    Raises:
        ValueError: `small` is among the recipes, and the others start from pre-trained weights.
    """
    if any(map(is_small, texts)) and (option_value(options, "from_scratch") or "").lower() != "true":
        raise ValueError(
            "The baseline 'small' has no pre-trained weights, so the models it is compared with must have none either; "
            "add --from_scratch True, or leave 'small' out."
        )


# -- sweeps -------------------------------------------------------------------------------------------------------


def read_sweep(text: str) -> Sweep:
    """Return the sweep of a text such as `"rho"`, or `"rho=1e-3,1e-2"` with other values.

    Args:
        text: A name of `SWEEPS`, with or without values.

    Raises:
        ValueError: There is no such sweep, or a value is empty.
    """
    name, equals, values = text.partition("=")
    if name not in SWEEPS:
        raise ValueError(f"There is no sweep {name!r}; --sweep takes {', '.join(SWEEPS)}.{suggestion(name, SWEEPS)}")
    if equals and not all(values.split(",")):
        raise ValueError(f"--sweep {text!r} has an empty value; write it as rho=1e-3,1e-2.")
    return replace(SWEEPS[name], values=tuple(values.split(","))) if equals else SWEEPS[name]


def sweep_variants(texts: Sequence[str], sweeps: Sequence[str], options: Sequence[str]) -> list[Variant]:
    """Return the given recipes, and with every swept value those that have the setting.

    Args:
        texts: The given recipes.
        sweeps: The sweeps, see `read_sweep`. Several that are joined by "*" are crossed: "refresh*density" trains
            every value of the one with every value of the other.
        options: The options that all trials share.

    Raises:
        ValueError: There is no such sweep, or the budget is crossed with another.
    """
    variants = [Variant(text) for text in texts]
    for crossed in ([read_sweep(name) for name in sweep.split("*")] for sweep in sweeps):
        if crossed[0].setting == "budget" and len(crossed) == 1:
            variants += [variant for text in texts for variant in _with_budgets(text, crossed[0].values, options)]
        elif any(sweep.setting == "budget" for sweep in crossed):
            raise ValueError("--sweep budget cannot be crossed with another; write it by itself: --sweep budget.")
        else:
            variants += map(Variant, _crossed(texts, crossed))
    return list(dict.fromkeys(variants))


def _crossed(texts: Sequence[str], sweeps: Sequence[Sweep]) -> list[str]:
    """Return the recipes that have all settings of the sweeps, or a sweep's own recipe, with all their values."""
    swept = [text for text in texts if free_settings(text) >= {sweep.setting for sweep in sweeps}]
    swept = swept or [next((sweep.recipe for sweep in sweeps if sweep.setting != "pattern"), sweeps[0].recipe)]
    for sweep in sweeps:
        swept = [text for base in swept for text in _with_values(base, sweep)]
    return swept


def _with_values(base: str, sweep: Sweep) -> Iterator[str]:
    """Yield a recipe's text as it is, and with each value that is not its default."""
    yield base
    for value in sweep.values:
        text = f"{base} {sweep.setting}={value}"
        if _with_defaults(text) != _with_defaults(base):
            yield text


def _with_defaults(text: str) -> NxMConfig:
    """Return the config of a recipe's text with all defaults written out.

    >>> _with_defaults("ste grad_scale=1.0") == _with_defaults("ste")
    True
    """
    config = read_recipe(text)
    assert isinstance(config.recipe, str) and isinstance(config.settings, dict)  # a config normalizes them
    return replace(config, settings={**recipes.settings(config.recipe), **config.settings})


def _with_budgets(text: str, factors: Sequence[str], options: Sequence[str]) -> Iterator[Variant]:
    """Yield a recipe with each multiple of the given budget, but for the budget itself."""
    name = "max_steps" if option_value(options, "max_steps") else "num_train_epochs"
    given = float(option_value(options, name) or 3)  # 3 epochs are the default of TrainingArguments
    for factor in factors:
        amount = float(factor) * given
        if amount != given:
            value = str(round(amount)) if name == "max_steps" else f"{amount:g}"
            yield Variant(text, ((name, value),), without_budget(options))
