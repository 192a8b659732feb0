"""The guide to recipes that `nxm recipes` prints: the list of recipes, and a recommendation from measured results.

The results are in `recipe_results.json`. Its `tasks` maps each task to its number of training rows. The list is in
`recipe_catalogue.json`, a copy of what `nxm_hf.recipes` describes: importing that takes torch, and so a second or more.
"""

import json
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from statistics import mean
from typing import Any

MAX_WIDTH = 100
MAX_EXTRAPOLATION = 4  # beyond this many times the rows of the largest task, advice is only a guess


@dataclass(frozen=True)
class Measurement:
    """The result of training with one recipe and one pattern.

    `gap_closed` is (recipe - asp) / (dense - asp) of the tasks' mean metric: 0 is as good as `asp`, 1 as good as dense
    training.
    """

    recipe: str  # with its settings, but without the pattern
    pattern: str
    gap_closed: float
    seeds: int
    tasks: tuple[str, ...]
    measured_as: str = ""  # what the results call the recipe, if it had another name then

    @property
    def name_in_results(self) -> str:
        """Return what the results call the recipe, as compare.py names it."""
        return self.measured_as or self.recipe


def _read(name: str) -> Any:
    return json.loads(files("nxm_hf.cli").joinpath(name).read_text(encoding="utf-8"))


_RESULTS: dict[str, Any] = _read("recipe_results.json")
CATALOGUE: dict[str, Any] = _read("recipe_catalogue.json")
MODEL: str = _RESULTS["model"]
TASKS: dict[str, int] = _RESULTS["tasks"]
MEASUREMENTS = tuple(Measurement(**{**row, "tasks": tuple(row["tasks"])}) for row in _RESULTS["measurements"])


def guide(width: int) -> str:
    """Return the list of all recipes, followed by the advice for 2:4.

    Args:
        width: The number of columns of the terminal; only a longer word makes a wider line.
    """
    width = min(width, MAX_WIDTH)
    name_width = max(map(len, CATALOGUE)) + 2
    header = _row("recipe", ["what it does, its settings with their defaults, its paper"], name_width, width)
    lines = [*header, "-" * width]
    for name, recipe in CATALOGUE.items():
        settings = ", ".join(f"{key}={value!r}" for key, value in recipe["settings"].items())
        lines += _row(name, [recipe["summary"], f"Settings: {settings or 'none'}", recipe["paper"]], name_width, width)
    lines += ["", *textwrap.wrap("Every recipe also takes the fractions warmup and settle of NxMConfig.", width)]
    return "\n".join([*lines, "", advice(width)])


def as_dict(pattern: str) -> dict[str, Any]:
    """Return the list of all recipes, and the measurements with a pattern, the best first.

    Args:
        pattern: The sparsity pattern.
    """
    return {"recipes": CATALOGUE, "model": MODEL, "measurements": [asdict(one) for one in _measured(pattern)]}


def advice(width: int, rows: int | None = None, pattern: str = "2:4") -> str:
    """Recommend a recipe, and list the measurements behind the recommendation.

    Args:
        width: The number of columns of the terminal.
        rows: The number of training rows of the task; None if it is not known.
        pattern: The sparsity pattern.

    Returns:
        Three paragraphs: the recommendation, the same as Python code, and a command that compares recipes.

    Raises:
        ValueError: if `rows` is below 1 or there is no such pattern.

    Example:
        >>> print(advice(100, rows=4000).split(". ")[0])
        For 2:4 start with admm
    """
    if rows is not None and rows < 1:
        raise ValueError(f"The number of training rows must be 1 or more; got rows={rows}. Write --rows 4000.")
    pattern = _canonical(pattern)
    measured = _measured(pattern)
    recipe = measured[0].recipe if measured else "admm"
    paragraphs = [
        " ".join([_recommendation(pattern, measured), *_limits(rows, measured)]),
        f"In a script:  sparsity={in_python(recipe, pattern)}",
        f"To compare:  {_compare_command(recipe, pattern)}",
    ]
    width = min(width, MAX_WIDTH)
    return "\n\n".join("\n".join(textwrap.wrap(text, width, break_on_hyphens=False)) for text in paragraphs)


def _canonical(pattern: str) -> str:
    if any(one.pattern == pattern for one in MEASUREMENTS):
        return pattern
    from nxm_hf.patterns import parse  # which imports torch

    return str(parse(pattern))


def _measured(pattern: str) -> list[Measurement]:
    """Return the measurements with a pattern, those of the best recipe first, and of a recipe those with most seeds."""
    pattern = _canonical(pattern)
    found = [one for one in MEASUREMENTS if one.pattern == pattern]
    shares = {one.recipe: _by_task(one.recipe, found) for one in found}

    def key(one: Measurement) -> tuple:
        of_recipe = shares[one.recipe]
        return -len(of_recipe), -mean(of_recipe.values()), one.recipe, -len(one.tasks), -one.seeds, -one.gap_closed

    return sorted(found, key=key)


def _by_task(recipe: str, measured: Sequence[Measurement]) -> dict[str, float]:
    """Return the share of the gap that a recipe closes on each task, by the measurement with most tasks and seeds."""
    of_recipe = sorted((one for one in measured if one.recipe == recipe), key=lambda one: (len(one.tasks), one.seeds))
    return {task: one.gap_closed for one in of_recipe for task in one.tasks}


def _recommendation(pattern: str, measured: Sequence[Measurement]) -> str:
    if not measured:
        return f"Nothing has been measured with {pattern} yet; start with the default, admm with no settings."
    recipe = measured[0].recipe
    tasks = tuple(dict.fromkeys(task for one in measured if one.recipe == recipe for task in one.tasks))
    named = ", ".join(f"{name} ({TASKS[name]} rows)" for name in tasks)
    shares = ", ".join(_share(one, tasks) for one in measured)
    return (
        f"For {pattern} start with {recipe}. Measured on {named} with {MODEL}, each recipe closes this share of "
        f"the gap between asp (0%) and dense training (100%): {shares}."
    )


def _share(measurement: Measurement, tasks: tuple[str, ...]) -> str:
    """Return the share of one recipe, with its tasks if they are not `tasks`."""
    other = f" on {' and '.join(measurement.tasks)}" if measurement.tasks != tasks else ""
    seeds = f"{measurement.seeds} seed{'s' if measurement.seeds > 1 else ''}"
    return f"{measurement.recipe} {measurement.gap_closed:.0%} ({seeds}{other})"


def _limits(rows: int | None, measured: Sequence[Measurement]) -> Iterable[str]:
    """Yield what restricts the advice."""
    largest = max(TASKS.values())
    if rows is not None and rows > MAX_EXTRAPOLATION * largest:
        yield f"The largest measured task has {largest} rows, so for {rows} rows this is only a guess."
    elif measured:
        yield "Other models and larger tasks may rank recipes differently."


def in_python(recipe: str, pattern: str) -> str:
    """Return the Python expression of a config.

    Args:
        recipe: The recipe and its settings, as compare.py names them.
        pattern: The sparsity pattern.

    Example:
        >>> in_python("asp scores=alps warmup=0.5", "2:4")
        "NxMConfig('asp', '2:4', settings={'scores': 'alps'}, warmup=0.5)"
    """
    name, *pairs = recipe.split()
    settings = {key: _value(value) for key, _, value in (pair.partition("=") for pair in pairs)}
    phases = [f"{key}={settings.pop(key)}" for key in ("warmup", "settle") if key in settings]
    arguments = [repr(name), repr(pattern), *([f"settings={settings}"] if settings else []), *phases]
    return f"NxMConfig({', '.join(arguments)})"


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _compare_command(recipe: str, pattern: str) -> str:
    names = " ".join(f'"{name} pattern={pattern}"' for name in dict.fromkeys(["asp", "admm", recipe]))
    return f"python benchmarks/glue/compare.py --recipes dense {names} --model_name_or_path MODEL --tasks TASK"


def _row(name: str, paragraphs: Sequence[str], name_width: int, width: int) -> list[str]:
    """Return the lines of a name with wrapped paragraphs beside it."""
    room = max(width - name_width, 20)
    lines = []
    for text in paragraphs:
        lines += textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
    return [f"{first:{name_width}}{line}" for first, line in zip([name, *[""] * len(lines)], lines, strict=False)]
