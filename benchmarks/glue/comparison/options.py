"""Options of `run_glue.py` that all trials of a comparison share: find them, check them, take the budget out."""

import difflib
from collections.abc import Collection, Sequence
from dataclasses import fields
from functools import cache
from typing import Any

import transformers

from . import squad_script
from .example_scripts import glue_data, run_glue

BUDGETS = ("num_train_epochs", "max_steps")
# Options that differ from trial to trial, and what to write in their place.
SET_BY_TRIAL = {
    **dict.fromkeys(("recipe", "settings", "pattern", "warmup", "settle"), "in the recipe: 'admm settle=0.3'"),
    "seed": "--seeds 0 1 2",
    "task_name": "--tasks mrpc",
    "hold_out": "--grid; it holds rows out",
}
SHARED_SPARSITY_OPTIONS = ("include", "exclude", "on_indivisible")


@cache
def known_options() -> frozenset[str]:
    """Return the name of every option of the scripts that is not one of the recipe."""
    classes: tuple[Any, ...] = (glue_data.DataOptions, run_glue.ModelOptions, squad_script.Script)
    classes = (*classes, transformers.TrainingArguments)
    return frozenset(field.name for options in classes for field in fields(options) if field.init)


def option_name(argument: str) -> str:
    """Return the name in `--name` or `--name=value`, with underscores.

    >>> option_name("--max-steps=5")
    'max_steps'
    """
    return argument.removeprefix("--").partition("=")[0].replace("-", "_")


def option_value(arguments: Sequence[str], name: str) -> str | None:
    """Return the value of an option on a command line.

    Args:
        arguments: The words of the command line.
        name: The name of the option, without dashes in front.

    Returns:
        The value of the last `--name value` or `--name=value`; "true" for a bare `--name`; None if it is absent.

    Example:
        >>> option_value(["--max_steps", "5", "--bf16", "--seed=3"], "bf16")
        'true'
    """
    value = None
    for argument, following in zip(arguments, [*arguments, "--"][1:], strict=True):
        if not argument.startswith("--") or option_name(argument) != name:
            continue
        if "=" in argument:
            value = argument.partition("=")[2]
        else:
            value = "true" if following.startswith("--") else following
    return value


def without_budget(arguments: Sequence[str]) -> tuple[str, ...]:
    """Return a command line without the options that set the length of training.

    >>> without_budget(["--bf16", "--max_steps", "200", "--use_cpu"])
    ('--bf16', '--use_cpu')
    """
    kept, skip = [], False
    for argument in arguments:
        if argument.startswith("--"):
            skip = option_name(argument) in BUDGETS
        if not skip:
            kept.append(argument)
    return tuple(kept)


def check_options(arguments: Sequence[str]) -> None:
    """Check the options that all trials share.

    Args:
        arguments: The words of the command line that go to `run_glue.py` as they are.

    Raises:
        ValueError: `run_glue.py` does not have such an option, or each trial sets it itself.
    """
    for argument in arguments:
        if not argument.startswith("--"):
            continue
        name, known = option_name(argument), known_options()
        if name in SET_BY_TRIAL:
            raise ValueError(f"--{name} is set by each trial and cannot be shared; write it as {SET_BY_TRIAL[name]}.")
        if name not in known and name not in SHARED_SPARSITY_OPTIONS and name.removeprefix("no_") not in known:
            raise ValueError(f"There is no option --{name}, here or in run_glue.py.{suggestion(name, known, '--')}")


def suggestion(name: str, known: Collection[str], prefix: str = "") -> str:
    """Return a sentence with the known names that a misspelled one is close to, or an empty string.

    Args:
        name: The misspelled name.
        known: All correct names.
        prefix: Text to write in front of each name.

    Example:
        >>> suggestion("learning_rat", {"learning_rate", "seed"}, "--")
        ' Did you mean --learning_rate?'
    """
    close = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.6)
    return f" Did you mean {', '.join(prefix + match for match in close)}?" if close else ""
