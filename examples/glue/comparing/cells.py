"""Cells of a comparison: one training each, all that decides its result, and the command line that makes it."""

import contextlib
import difflib
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

import transformers
from run_glue import DataOptions, ModelOptions, read_options

from comparing.shapes import Shape, small
from nxm_hf import NxMConfig, recipes
from nxm_hf.distillation.loss import DistillationConfig

HELD_OUT = 0.1
SMALL = "small"  # no recipe of the catalogue, but a baseline that is written like one
TEACHING = tuple(field.name for field in fields(DistillationConfig))
# What a cell says itself, and so no option for all of them.
SAID = {
    **dict.fromkeys(("recipe", "settings", "pattern", "warmup", "settle"), "in the recipe: 'admm settle=0.3'"),
    **{"seed": "--seeds 0 1 2", "task_name": "--tasks mrpc", "hold_out": "--grid; it holds rows out"},
}


@dataclass(frozen=True)
class Cell:
    """One training: all that decides its result, and so its name."""

    task: str
    recipe: str  # as it was written
    seed: int
    grid: tuple[tuple[str, str], ...] = ()  # options of `run_glue.py`, or settings of the recipe
    hold_out: float = 0.0
    model: str = ""
    more: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """A short name that no other cell has."""
        told = json.dumps(asdict(self), sort_keys=True)
        return f"{self.task}-{self.recipe.split()[0]}-{self.seed}-{hashlib.sha256(told.encode()).hexdigest()[:10]}"

    @property
    def config(self) -> NxMConfig:
        """What the recipe's words say, with those of the grid that are its own."""
        return read_recipe(self.recipe).replace(**{key: number(value) for key, value in self.grid if is_ours(key)})

    @property
    def teacher(self) -> "Cell | None":
        """The dense training of the same task, seed and options that this one learns from, if it does."""
        if not read_teaching(self.recipe):
            return None
        grid = tuple((key, value) for key, value in self.grid if not is_ours(key))
        return Cell(self.task, "dense", self.seed, grid, self.hold_out, self.model, self.more)

    @property
    def shape(self) -> Shape:
        """The model's shape; that of `small` has as many weights as the sparse model has non-zero ones."""
        shape = Shape.of(self.model, self.task, self.more)
        return small(shape, self.config.pattern) if is_small(self.recipe) else shape

    def words(self, folder: Path) -> list[str]:
        """The command line of `run_glue.py`; a teacher lies beside the folder, under its own name."""
        config, words = self.config, []
        for name in ("recipe", "pattern", "settings", "warmup", "settle"):
            value = getattr(config, name)
            words += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
        for key, value in self.grid:
            words += [] if is_ours(key) else [f"--{key}", value]
        words += ["--model_name_or_path", self.model, "--task_name", self.task, "--seed", str(self.seed)]
        words += ["--do_train", "--do_eval", "--save_strategy", "no", "--hold_out", str(self.hold_out)]
        words += self.more
        if self.teacher:
            how = {key: value for key, value in read_teaching(self.recipe).items() if key != "teacher"}
            words += ["--teacher", str(folder.parent / self.teacher.name), "--distillation", json.dumps(how)]
        if is_small(self.recipe):
            words += ["--config_overrides", self.shape.overrides]
        return [*words, "--output_dir", str(folder)]


# -- words --------------------------------------------------------------------------------------------------------


@cache
def options_of_run_glue() -> frozenset[str]:
    """Every option of `run_glue.py` that is not the recipe's."""
    kinds = (DataOptions, ModelOptions, transformers.TrainingArguments)
    return frozenset(field.name for kind in kinds for field in fields(kind) if field.init)


def is_ours(key: str) -> bool:
    """Whether a key of the grid belongs to the recipe, rather than to `run_glue.py`."""
    return key not in options_of_run_glue()


def is_small(recipe: str) -> bool:
    """Whether a recipe is the baseline `small`."""
    return recipe.split()[0] == SMALL


def number(text: str):
    """A value as JSON has it, or else a word."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read(text: str) -> tuple[str, dict]:
    """The name of a recipe, and what is written after it."""
    if not text.strip():
        raise ValueError("A recipe is empty; write its name, such as 'admm settle=0.3'.")
    name, *changes = text.split()
    for change in changes:
        if not all(change.partition("=")):
            raise ValueError(f"{change!r} of the recipe {text!r} sets nothing; write a key and a value: 'settle=0.3'.")
    return name, {key: number(value) for key, _, value in (change.partition("=") for change in changes)}


def read_recipe(text: str) -> NxMConfig:
    """`"admm settle=0.3 rho=0.01"`, as a config.

    >>> read_recipe("admm settle=0.3 rho=0.01").settings
    {'rho': 0.01}
    """
    name, words = _read(text)
    words = {key: value for key, value in words.items() if key != "teacher" and key not in TEACHING}
    if name == SMALL:
        if wrong := sorted(set(words) - {"pattern"}):
            raise ValueError(f"The baseline 'small' takes a pattern alone; got {', '.join(wrong)}. Write 'small'.")
        return NxMConfig("dense", **words)
    return NxMConfig(name).replace(**words)


def read_teaching(text: str) -> dict:
    """What a recipe says of its teacher; nothing where it has none.

    >>> read_teaching("admm rho=0.01 teacher=dense weight=0.9")
    {'teacher': 'dense', 'weight': 0.9}
    """
    name, words = _read(text)
    teaching = {key: value for key, value in words.items() if key == "teacher" or key in TEACHING}
    if not teaching:
        return {}
    if teaching.get("teacher") != "dense" or name == SMALL:
        raise ValueError(
            f"The teacher of {text!r} must be a dense training of its own shape; write 'admm teacher=dense'."
        )
    DistillationConfig.from_any({key: value for key, value in teaching.items() if key in TEACHING})
    return teaching


# -- checks before anything runs ----------------------------------------------------------------------------------


def check_more(words: Sequence[str]) -> None:
    """Refuse options that `run_glue.py` does not have, or that cells say themselves."""
    for word in words:
        if not word.startswith("--"):
            continue
        name = word[2:].partition("=")[0].replace("-", "_")
        if name in SAID:
            raise ValueError(f"--{name} is told by each cell and cannot hold for all; write it as {SAID[name]}.")
        if name not in options_of_run_glue() | {"include", "exclude", "on_indivisible"}:
            known = options_of_run_glue()
            if name.removeprefix("no_") not in known:
                raise ValueError(f"There is no option --{name}, here or in run_glue.py.{near(name, known, '--')}")


def check_key(key: str, texts: Sequence[str]) -> None:
    """Refuse a key of a grid that neither `run_glue.py` nor one of these recipes takes."""
    if any(takes(text, key) for text in texts):
        return
    own = {name for text in texts for name in settings_of(text)}
    if is_ours(key):
        raise ValueError(
            f"Neither run_glue.py nor one of the recipes has {key!r}; the recipes have "
            f"{', '.join(sorted(own)) or 'nothing'}.{near(key, own | options_of_run_glue())}"
        )
    raise ValueError(f"{key!r} is told by each cell itself; write it as {SAID.get(key, 'an option of compare.py')}.")


def settings_of(text: str) -> set[str]:
    """What a grid may set of a recipe: nothing of `dense`, and nothing that its text has set."""
    config = read_recipe(text)
    if config.is_dense:
        return set()
    return {*recipes.settings(config.recipe), "pattern", "warmup", "settle"} - set(_read(text)[1])


def takes(text: str, key: str) -> bool:
    """Whether a recipe has a use for a key of a grid."""
    return key in settings_of(text) if is_ours(key) else key not in SAID


def check_cell(cell: Cell) -> None:
    """Refuse a cell whose command line `run_glue.py` would refuse; the error is its own."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            read_options(cell.words(Path("out")))
    except SystemExit:
        told = said.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        raise ValueError(f"{cell.recipe} {dict(cell.grid)}: {told}; write another value.") from None


def near(word: str, known: Sequence[str] | set[str] | frozenset[str], before: str = "") -> str:
    """What may have been meant.

    >>> near("learning_rat", {"learning_rate", "seed"}, "--")
    ' Did you mean --learning_rate?'
    """
    found = difflib.get_close_matches(word, sorted(known), n=3, cutoff=0.6)
    return f" Did you mean {', '.join(before + name for name in found)}?" if found else ""
