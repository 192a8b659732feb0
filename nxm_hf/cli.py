"""The command line `nxm`: a function for each command. To add one, write a function and list it in COMMANDS."""

import argparse
import difflib
import inspect
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, get_args

import nxm_hf
from nxm_hf import inspection, recipes, verification

Directory = Annotated[str, "a directory that save_model or save_pretrained wrote"]
PatternText = Annotated[str, "what every layer is to hold, as 2:4 (default: what the directory has on record)"]


# -- the commands: positional arguments are the user's, keyword arguments are options; the return value is the exit code


def verify_command(dir: Directory, *, pattern: PatternText = "") -> int:
    """Check that every layer holds its pattern, with true +0.0 zeros.

    Exits with 0 when all is well, 1 when there are problems (each is listed), 2 when the directory cannot be read.
    """
    report = verification.verify(_existing(dir), pattern or None)
    print(report)
    return 0 if report.ok else 1


def inspect_command(dir: Directory) -> int:
    """Show the layers, their roles, shapes and density, and which GPU kernels could run them.

    The model may be sparse or dense. Exits with 0, or with 2 when the directory cannot be read.
    """
    print(inspection.inspect(_existing(dir)))
    return 0


def recipes_command() -> int:
    """List the recipes with their settings, defaults and papers."""
    print(recipes_table(shutil.get_terminal_size().columns))
    return 0


COMMANDS = (verify_command, inspect_command, recipes_command)


# -- what they are made with ---------------------------------------------------------------------------------------


def recipes_table(width: int) -> str:
    """The catalogue of recipes, no line wider than `width` where words allow."""
    names = recipes.names()
    left = max(map(len, names)) + 2
    head = [f"{'recipe':{left}}what it does, its settings and their defaults, its paper", "-" * min(width, 100)]
    return "\n".join(head + [line for name in names for line in _sheet(name, left, width)])


def _sheet(name: str, left: int, width: int) -> list[str]:
    sentence, paper = recipes.describe(name)
    settings = ", ".join(f"{key}={value!r}" for key, value in recipes.settings(name).items())
    room = max(min(width, 100) - left, 20)
    words = [sentence, settings or "no settings", paper]
    lines = [
        line for part in words for line in textwrap.wrap(part, room, break_long_words=False, break_on_hyphens=False)
    ]
    return [f"{first:{left}}{line}" for first, line in zip([name, *[""] * len(lines)], lines, strict=False)]


def _existing(dir: str) -> str:
    """The directory, or an error: a name that is no directory here would otherwise be looked for on the Hub."""
    if not Path(dir).is_dir():
        is_file = "is a file; a directory is needed" if Path(dir).exists() else "does not exist"
        raise FileNotFoundError(f"{dir} {is_file}.")
    return dir


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message}. See {self.prog} --help.\n")


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line, from the signatures and docstrings of COMMANDS."""
    whole = _Parser(prog="nxm", description="Look at and check models made sparse by nxm_hf.", allow_abbrev=False)
    whole.add_argument("--version", action="version", version=f"nxm_hf {nxm_hf.__version__}")
    commands = whole.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for function in COMMANDS:
        _add(commands, function)
    return whole


def _add(commands: argparse._SubParsersAction, function: Callable[..., int]) -> None:
    summary, _, more = inspect.getdoc(function).partition("\n")
    one = commands.add_parser(_name(function), help=summary, description=f"{summary}{more}", allow_abbrev=False)
    for name, parameter in inspect.signature(function).parameters.items():
        kind, help = get_args(parameter.annotation)
        if parameter.kind is parameter.KEYWORD_ONLY:
            flag = f"--{name.replace('_', '-')}"
            one.add_argument(flag, dest=name, type=kind, default=parameter.default, metavar=name.upper(), help=help)
        else:
            one.add_argument(name, type=kind, metavar=name.upper(), help=help)
    one.set_defaults(command=function)


def _name(function: Callable[..., int]) -> str:
    return function.__name__.removesuffix("_command").replace("_", "-")


def _unknown_command(arguments: Sequence[str]) -> str | None:
    """What to say of a first word that is no command."""
    names = [_name(function) for function in COMMANDS]
    if not arguments or arguments[0].startswith("-") or arguments[0] in names:
        return None
    near = difflib.get_close_matches(arguments[0].lower(), names, n=1, cutoff=0.5)
    hint = f" Did you mean `nxm {near[0]}`?" if near else ""
    return f"There is no command {arguments[0]!r}; the commands are {', '.join(names)}.{hint}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if unknown := _unknown_command(arguments):
        return _complain("nxm", unknown)
    try:
        given = vars(parser().parse_args(arguments or ["--help"]))
    except SystemExit as end:  # argparse has said why
        return int(end.code or 0) or (0 if arguments else 2)
    return _run(given.pop("command"), given)


def _run(command: Callable[..., int], given: dict) -> int:
    try:
        code = command(**given)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, as in `| head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, ValueError) as error:
        return _complain(f"nxm {_name(command)}", " ".join(str(error).split()))


def _complain(who: str, what: str) -> int:
    print(f"{who}: {what}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
