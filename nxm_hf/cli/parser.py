"""Argument parsers made from the signatures of commands.

A command is a function whose name ends in `_command`. Its positional parameters are arguments, its keyword-only
parameters are options, and its docstring is its help. The type of a parameter is one of `nxm_hf.cli.options`.
"""

import argparse
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, get_args, get_origin

from nxm_hf._version import __version__

Command = Callable[..., int]


class CommandParser(argparse.ArgumentParser):
    """An argument parser that prints an error as one line and suggests the nearest option for a misspelled one."""

    options: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        unknown = [word for word in message.split() if word.startswith("--") and word not in self.options]
        self.exit(2, f"{self.prog}: {message}.{did_you_mean(unknown, self.options)} See {self.prog} --help.\n")


def command_name(command: Command) -> str:
    """Return the name of a command as users type it.

    Args:
        command: The function of the command.

    Example:
        >>> def say_twice_command() -> int: ...
        >>> command_name(say_twice_command)
        'say-twice'
    """
    return command.__name__.removesuffix("_command").replace("_", "-")


def did_you_mean(unknown: Sequence[str], known: Iterable[str]) -> str:
    """Suggest the known word nearest to the first unknown one.

    Args:
        unknown: The words that were not recognized.
        known: The words that would have been.

    Returns:
        A sentence with a leading space, or an empty text if no known word is near.

    Example:
        >>> did_you_mean(["verfy"], ["verify", "inspect"])
        ' Did you mean verify?'
    """
    near = difflib.get_close_matches(unknown[0].lower(), list(known), n=1, cutoff=0.5) if unknown else []
    return f" Did you mean {near[0]}?" if near else ""


def overview_parser(commands: Mapping[str, Command]) -> CommandParser:
    """Return the parser of `nxm` without a command, which knows --help and --version.

    Args:
        commands: The function of each command, by name.
    """
    width = max(map(len, commands)) + 2
    lines = [f"  {name:{width}}{_summary_and_details(command)[0]}" for name, command in commands.items()]
    parser = CommandParser(
        prog="nxm",
        usage="nxm [--help] [--version] COMMAND ...",
        description="Prune models, inspect and verify sparse ones, and plan a training.",
        epilog="\n".join(["commands:", *lines, "", "`nxm COMMAND --help` explains a command."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nxm_hf {__version__}")
    parser.options = ("--version", "--help")
    return parser


def command_parser(command: Command) -> CommandParser:
    """Return the parser of one command.

    Args:
        command: The function of the command.
    """
    summary, details = _summary_and_details(command)
    parser = CommandParser(prog=f"nxm {command_name(command)}", description=f"{summary}{details}", allow_abbrev=False)
    options = []
    for name, parameter in inspect.signature(command).parameters.items():
        value_type, help_text = get_args(parameter.annotation)
        choices: dict[str, Any] = {"metavar": name.upper(), "help": help_text}
        if get_origin(value_type) is not None:  # Sequence[str]: one or more values
            (value_type,), choices["nargs"] = get_args(value_type), "+"
        if parameter.default is not parameter.empty:
            choices["default"] = parameter.default
        if parameter.kind is parameter.KEYWORD_ONLY:
            options.append(f"--{name.replace('_', '-')}")
            required = parameter.default is parameter.empty
            parser.add_argument(options[-1], type=value_type, dest=name, required=required, **choices)
        else:
            if "default" in choices:
                choices["nargs"] = "?"
            parser.add_argument(name, type=value_type, **choices)
    parser.options = (*options, "--help")
    return parser


def _summary_and_details(command: Command) -> tuple[str, str]:
    summary, _, details = (inspect.getdoc(command) or "").partition("\n")
    return summary, details
