"""Arms: what is compared. Recipes as written, swept over a setting, and the points of a grid that each can take."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from comparing.cells import is_small, near, read_recipe, settings_of, takes
from comparing.results import BUDGETS
from comparing.shapes import option
from nxm_hf import NxMConfig
from nxm_hf.recipes import settings

Point = tuple[tuple[str, str], ...]
Grid = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Arm:
    """A recipe, and options of its own where its budget is not that of the others."""

    recipe: str
    extra: Point = ()
    more: tuple[str, ...] | None = None  # in place of what all others are given


@dataclass(frozen=True)
class Sweep:
    """A setting, the values to try, and the recipe to try them with where none that was given has it."""

    setting: str
    values: tuple[str, ...]
    recipe: str = ""


SWEEPS = {
    "rho": Sweep("rho", ("1e-3", "3e-3", "1e-2", "3e-2", "1e-1"), "admm"),
    "refresh": Sweep("refresh", ("1", "10", "100", "1000"), "sr-ste"),
    "grad_scale": Sweep("grad_scale", ("0.0", "0.1", "0.3", "1.0"), "ste"),
    "reset": Sweep("every", ("10", "30", "100", "300", "1000"), "reset"),
    "density": Sweep("pattern", ("1:8", "1:4", "2:4", "3:4", "4:8", "2:4-transposable", "unstructured:0.5"), "asp"),
    "budget": Sweep("budget", ("0.25", "0.5", "1", "2")),  # times the budget given
}

# Table 3 of NxMTransformer (https://arxiv.org/abs/2110.15766), and its section 4.1 for what it compares with. Of the
# tasks that it leaves out, QQP is as large as MNLI and WNLI as small as RTE.
LARGE = ("mnli", "qnli", "sst2", "qqp")
PRESETS = {
    "nxmtransformer": {
        True: {"learning_rate": ("1e-5", "3e-5", "5e-5"), "rho": ("4e-4", "1e-3", "3e-3"), "num_train_epochs": ("5",)},
        False: {
            "learning_rate": ("5e-5", "7e-5", "9e-5", "1e-4"),
            "rho": ("3e-3", "6e-3", "1e-2"),
            "num_train_epochs": ("10",),
        },
    }
}
RATES = {  # of recipes that have their own in the paper: on large tasks, on small ones
    "dense": (("1e-5", "3e-5", "5e-5"), ("1e-5", "3e-5", "5e-5", "7e-5", "9e-5")),
    "asp": (("1e-5", "3e-5", "5e-5", "7e-5", "9e-5"),) * 2,
}


def preset_grid(preset: str, task: str, recipe: str, more: Sequence[str]) -> Grid:
    """The grid of a preset for a task and a recipe, without what the command line has set."""
    large = task in LARGE
    grid = {**PRESETS[preset][large], "per_device_train_batch_size": ("16", "32")}
    own = RATES.get(read_recipe(recipe).recipe)
    grid["learning_rate"] = own[0 if large else 1] if own else grid["learning_rate"]
    budget = any(option(more, name) for name in BUDGETS)
    return {key: values for key, values in grid.items() if not option(more, key) and not (budget and key in BUDGETS)}


def read_grid(words: Sequence[str]) -> Grid:
    """The axes of `key=a,b,c` options.

    >>> read_grid(["learning_rate=1,2", "sparsity.rho=0.01"])
    {'learning_rate': ['1', '2'], 'rho': ['0.01']}
    """
    axes: dict[str, Sequence[str]] = {}
    for axis in words:
        key, _, values = axis.partition("=")
        if not key or not all(values.split(",")):
            raise ValueError(f"--grid {axis!r} is not of the form learning_rate=3e-5,1e-4; write the values after '='.")
        axes[key.removeprefix("sparsity.")] = values.split(",")
    return axes


def points(grid: Grid, recipe: str) -> list[Point]:
    """Every combination of a grid's values, of the keys that a recipe has a use for.

    >>> points({"learning_rate": ["1", "2"], "rho": ["0.01"]}, "dense")
    [(('learning_rate', '1'),), (('learning_rate', '2'),)]
    """
    axes = [[(key, value) for value in values] for key, values in grid.items() if takes(recipe, key)]
    return list(itertools.product(*axes))


# -- sweeps -------------------------------------------------------------------------------------------------------


def read_sweep(word: str) -> Sweep:
    """`"rho"`, or `"rho=1e-3,1e-2"` with other values."""
    name, equals, values = word.partition("=")
    if name not in SWEEPS:
        raise ValueError(f"There is no sweep {name!r}; --sweep takes {', '.join(SWEEPS)}.{near(name, set(SWEEPS))}")
    if equals and not all(values.split(",")):
        raise ValueError(f"--sweep {word!r} has an empty value; write it as rho=1e-3,1e-2.")
    return replace(SWEEPS[name], values=tuple(values.split(","))) if equals else SWEEPS[name]


def sweep_arms(recipes: Sequence[str], sweeps: Sequence[str], more: Sequence[str]) -> list[Arm]:
    """The recipes, and each of them that has a swept setting with every value of it."""
    arms = [Arm(recipe) for recipe in recipes]
    for sweep in map(read_sweep, sweeps):
        if sweep.setting == "budget":
            arms += [arm for recipe in recipes for arm in _budgets(recipe, sweep.values, more)]
            continue
        bases = [recipe for recipe in recipes if sweep.setting in settings_of(recipe)] or [sweep.recipe]
        arms += [Arm(text) for base in bases for text in _swept(base, sweep)]
    return list(dict.fromkeys(arms))


def _swept(base: str, sweep: Sweep) -> Iterator[str]:
    """A recipe's text with each value; where that is the default, the text as it is, so that it is trained once."""
    yield base
    for value in sweep.values:
        text = f"{base} {sweep.setting}={value}"
        if _meant(text) != _meant(base):
            yield text


def _meant(text: str) -> NxMConfig:
    """What a recipe's text says, with the defaults of all that it does not.

    >>> _meant("ste grad_scale=1.0") == _meant("ste"), _meant("ste grad_scale=0.5") == _meant("ste")
    (True, False)
    """
    config = read_recipe(text)
    return replace(config, settings={**settings(config.recipe), **config.settings})


def _budgets(recipe: str, factors: Sequence[str], more: Sequence[str]) -> Iterator[Arm]:
    name = "max_steps" if option(more, "max_steps") else "num_train_epochs"
    whole = float(option(more, name) or 3)  # as TrainingArguments has it
    for factor in factors:
        amount = float(factor) * whole
        if amount != whole:
            yield Arm(recipe, ((name, str(round(amount)) if name == "max_steps" else f"{amount:g}"),), without(more))


def without(more: Sequence[str]) -> tuple[str, ...]:
    """Options without those of the budget."""
    kept, skip = [], False
    for word in more:
        if word.startswith("--"):
            skip = word[2:].partition("=")[0].replace("-", "_") in BUDGETS
        if not skip:
            kept.append(word)
    return tuple(kept)


def check_small(recipes: Sequence[str], more: Sequence[str]) -> None:
    """A narrower model has no pre-trained weights, so nothing that it is compared with may have."""
    if any(map(is_small, recipes)) and (option(more, "from_scratch") or "").lower() != "true":
        raise ValueError(
            "The baseline 'small' has no pre-trained weights, and is only compared with what has none either; "
            "add --from_scratch True, or leave 'small' out."
        )
