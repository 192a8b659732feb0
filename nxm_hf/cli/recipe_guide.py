"""The guide to recipes that `nxm recipes` prints: what there is, and what to start with, by what was seen of it."""

import json
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from nxm_hf import recipes
from nxm_hf.patterns import parse

WIDEST = 100
TASKS = {"MRPC": 3668, "CoLA": 8551, "STS-B": 5749}  # and the rows that they are trained on
MODEL = "all-MiniLM-L6-v2"
BEYOND = 4  # times as many rows as anybody has looked at is another kind of task


@dataclass(frozen=True)
class Seen:
    """How much of what `asp` loses to dense training a recipe won back, as a share, on the mean of the tasks.

    The measurements are those of benchmarks/glue/RESULTS.md.
    """

    recipe: str  # as compare.py writes it, but for the pattern
    pattern: str
    closed: float
    seeds: int
    tasks: tuple[str, ...] = tuple(TASKS)

    @property
    def rank(self) -> tuple[float, ...]:
        """What it comes by: how much of it was seen first, and only then what."""
        return -len(self.tasks), -self.seeds, -self.closed


TWO, COLA, STSB = ("MRPC", "CoLA"), ("CoLA",), ("STS-B",)
SEEN = (
    Seen("admm", "2:4", 0.91, 3),
    Seen("asp scores=alps warmup=0.5", "2:4", 0.86, 3),
    Seen("admm scores=fisher", "2:4", 0.72, 3),
    Seen("admm settle=0.3 scores=magnitude", "2:4", 0.67, 3, TWO),
    Seen("mask-decay grad=ste", "2:4", 0.54, 3, TWO),
    Seen("sr-ste", "2:4", 0.0, 3, TWO),
    Seen("asp scores=alps", "2:4", 0.45, 1, TWO),
    Seen("mask-decay grad=ste", "2:4", 0.56, 3, STSB),
    Seen("sr-ste", "2:4", -0.53, 3, STSB),
    Seen("structure-decay", "2:4", 0.08, 1, STSB),
    Seen("fix", "2:4", -0.97, 1, STSB),
    Seen("regularize", "2:4", -1.61, 1, STSB),
    Seen("asp scores=alps warmup=0.5", "1:4", 0.53, 2, COLA),
    Seen("admm scores=fisher", "1:4", 0.17, 1, COLA),
    Seen("admm", "1:4", 0.41, 2, COLA),
    Seen("asp scores=alps warmup=0.5", "4:8", 1.01, 1, COLA),
    Seen("admm", "4:8", 1.03, 1, COLA),
    Seen("admm scores=fisher", "4:8", 0.47, 1, COLA),
    Seen("asp scores=alps warmup=0.5", "4:8-transposable", 0.82, 2, COLA),
    Seen("admm", "4:8-transposable", 0.73, 2, COLA),
    Seen("admm scores=fisher", "4:8-transposable", 0.39, 1, COLA),
    Seen("admm", "unstructured:0.5", 0.48, 1, COLA),
    Seen("admm", "block:4:0.5", 0.62, 1, COLA),
)


def guide(width: int) -> str:
    """The catalogue, and below it what to start with; no line wider than `width` where words allow."""
    width = min(width, WIDEST)
    left = max(map(len, recipes.names())) + 2
    lines = [*_row("recipe", ["what it does, its settings with their defaults, its paper"], left, width), "-" * width]
    for name in recipes.names():
        sentence, paper = recipes.describe(name)
        settings = ", ".join(f"{key}={value!r}" for key, value in recipes.settings(name).items())
        lines += _row(name, [sentence, f"Settings: {settings or 'none'}", paper], left, width)
    lines += ["", *textwrap.wrap("Every recipe also takes the fractions warmup and settle of NxMConfig.", width)]
    return "\n".join([*lines, "", advice(width)])


def advice(width: int, rows: int = 0, pattern: str = "2:4") -> str:
    """What to start with, for a task of so many training rows (0: not said) and a pattern, and what that rests on.

    >>> print(advice(100, rows=4000).split(", ")[0].split(". ")[0])
    For 2:4 start with admm
    """
    if rows < 0:
        raise ValueError(f"rows={rows} is no number of training rows; it must be 1 or more. Write --rows 4000.")
    pattern = str(parse(pattern))
    seen = sorted((one for one in SEEN if one.pattern == pattern), key=lambda one: one.rank)
    words = " ".join([_first(pattern, seen), *_doubts(rows, seen)])
    best = seen[0].recipe if seen else "admm"
    parts = [words, f"In a script:  sparsity={in_python(best, pattern)}", f"To compare:  {_command(best, pattern)}"]
    return "\n\n".join("\n".join(textwrap.wrap(part, min(width, WIDEST), break_on_hyphens=False)) for part in parts)


def _first(pattern: str, seen: Sequence[Seen]) -> str:
    if not seen:
        return f"Nothing has been measured with {pattern} yet; start with the default, admm with no settings."
    best, *others = seen
    tasks = ", ".join(f"{name} ({TASKS[name]} rows)" for name in best.tasks)
    rest = "".join(f", {_share(other, best)}" for other in others)
    return (
        f"For {pattern} start with {best.recipe}. Of what asp loses to dense training on {tasks} with {MODEL}, it won "
        f"back the most: {_share(best, best)}{rest}."
    )


def _share(one: Seen, best: Seen) -> str:
    fewer = f" on {' and '.join(one.tasks)}" if one.tasks != best.tasks else ""
    return f"{one.recipe} {one.closed:.0%} ({one.seeds} seed{'s' if one.seeds > 1 else ''}{fewer})"


def _doubts(rows: int, seen: Sequence[Seen]) -> Iterable[str]:
    if rows > BEYOND * max(TASKS.values()):
        yield f"No task nearly as large as {rows} rows has been looked at: take it as a guess."
    elif seen:
        yield "On other models and larger tasks this may turn out otherwise."


def in_python(recipe: str, pattern: str) -> str:
    """What compare.py calls so, as a config.

    >>> in_python("asp scores=alps warmup=0.5", "2:4")
    "NxMConfig('asp', '2:4', settings={'scores': 'alps'}, warmup=0.5)"
    """
    name, *pairs = recipe.split()
    words = {key: _value(value) for key, _, value in (pair.partition("=") for pair in pairs)}
    phases = [f"{key}={words.pop(key)}" for key in ("warmup", "settle") if key in words]
    settings = [f"settings={words}"] if words else []
    return f"NxMConfig({', '.join([repr(name), repr(pattern), *settings, *phases])})"


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _command(best: str, pattern: str) -> str:
    arms = " ".join(f'"{recipe} pattern={pattern}"' for recipe in dict.fromkeys(["asp", "admm", best]))
    return f"python benchmarks/glue/compare.py --recipes dense {arms} --model_name_or_path MODEL --tasks TASK"


def _row(name: str, words: Sequence[str], left: int, width: int) -> list[str]:
    """A name, and beside it paragraphs that wrap."""
    room = max(width - left, 20)
    lines = [
        line for part in words for line in textwrap.wrap(part, room, break_long_words=False, break_on_hyphens=False)
    ]
    return [f"{first:{left}}{line}" for first, line in zip([name, *[""] * len(lines)], lines, strict=False)]
