"""The entry point of `nxm`: choose a command, run it and return its exit code.

To add a command, write a function in one of the `*commands.py` and list it in COMMANDS. Its name ends in
`_command`, its docstring is its help, and the types of its parameters are in `options.py`. It imports what it needs
when it runs, so that `--help` and a typing error are answered at once.
"""

import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Any

import typer
from typer.main import get_command

from nxm_hf._version import __version__
from nxm_hf.cli.adapter_commands import merge_command
from nxm_hf.cli.commands import (
    demo_command,
    flops_command,
    inspect_command,
    recipes_command,
    report_command,
    rewind_command,
    verify_command,
)
from nxm_hf.cli.inference_commands import bench_command
from nxm_hf.cli.packing_commands import pack_command, unpack_command
from nxm_hf.cli.prune_commands import convert_command, eval_command, prune_command
from nxm_hf.text import printable

COMMANDS: tuple[Callable[..., int], ...] = (
    verify_command,
    inspect_command,
    recipes_command,
    flops_command,
    prune_command,
    convert_command,
    eval_command,
    merge_command,
    pack_command,
    unpack_command,
    rewind_command,
    report_command,
    bench_command,
    demo_command,
)
SEVERAL_NUMBERS = ("--batch", "--length")  # of `nxm bench`, which is typed as --batch 1 8 32
NOT_COMMANDS = {  # what newcomers type, and what to type instead
    "help": "Write nxm --help.",
    "version": "Write nxm --version.",
    "train": "Training is a script: NxMTrainer in yours, or python examples/glue/run_glue.py CONFIG.yaml.",
}
OTHER_ARGUMENTS = {"output": "out", "o": "out", "m": "model"}  # what other commands call the arguments of ours
MESSAGE = 4000  # characters of an error, which may quote a file
INTERRUPTED = 130  # the exit code of a program that Ctrl-C ended
_UsageError: type[Exception] = typer.BadParameter.__bases__[
    0
]  # of click, or of the copy of it in newer versions of typer


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command of `nxm`.

    Args:
        arguments: The words after `nxm`; by default those of the running process.

    Returns:
        The exit code: that of the command, 2 for wrong usage and for input that cannot be read, or 130 after Ctrl-C.

    Example:
        >>> main(["--version"])
        nxm_hf ...
        0
    """
    words = _join_numbers(list(sys.argv[1:] if arguments is None else arguments))
    try:
        return get_command(_app()).main(words, prog_name="nxm", standalone_mode=False) or 0
    except _UsageError as error:
        return _complain_of_usage(error, words)
    except typer.Abort:
        return _complain("nxm", "interrupted.", INTERRUPTED)


def _join_numbers(words: list[str]) -> list[str]:
    """Join the numbers that follow an option of `bench` to one word: click gives each option one."""
    if words[:1] != ["bench"]:
        return words
    joined: list[str] = []
    for word in words:
        if word.isdigit() and len(joined) > 1 and joined[-2] in SEVERAL_NUMBERS:
            joined[-1] += f" {word}"
        else:
            joined.append(word)
    return joined


def _app() -> typer.Typer:
    app = typer.Typer(
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["--help", "-h"], "token_normalize_func": _normalized},
        epilog="`nxm COMMAND --help` explains a command.",
    )
    app.callback(invoke_without_command=True)(_overview)
    for command in COMMANDS:
        summary = (inspect.getdoc(command) or "").partition("\n")[0]  # in full, which click would shorten
        app.command(_name(command), short_help=summary)(_with_one_line_errors(command))
    return app


def _normalized(word: str) -> str:
    """Return an option or a command as it is spelled here: --batch_size is --batch-size."""
    return word.lower().replace("_", "-")


def _overview(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Prune models, inspect and verify sparse ones, and plan a training."""
    if version:
        print(f"nxm_hf {__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


def _name(command: Callable[..., int]) -> str:
    """Return the name of a command as users type it."""
    return command.__name__.removesuffix("_command").replace("_", "-")


def _with_one_line_errors(command: Callable[..., int]) -> Callable[..., int]:
    """Let a command print an expected error as one line, and return its exit code."""

    @functools.wraps(command)
    def run(**arguments: Any) -> int:
        program = f"nxm {_name(command)}"
        try:
            code = command(**arguments)
            sys.stdout.flush()
            return code
        except BrokenPipeError:  # the reader of our output has closed it, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except KeyboardInterrupt as interrupt:
            return _complain(program, str(interrupt) or "interrupted.", INTERRUPTED)
        except (OSError, ValueError, ImportError) as error:
            return _complain(program, " ".join(str(error).split()))

    return run


def _complain_of_usage(error: Any, words: Sequence[str]) -> int:  # click's UsageError, which typer does not export
    names = [_name(command) for command in COMMANDS]
    program = error.ctx.command_path if error.ctx else " ".join(("nxm", *[word for word in words[:1] if word in names]))
    message = " ".join(error.format_message().split())
    if usage := _argument_as_option(error):
        return _complain(program, f"No such option: {error.option_name}. {usage} See {program} --help.")
    stop = "" if message.endswith("?") else "."
    return _complain(program, f"{message.rstrip('.')}{stop}{_hint(error, words)} See {program} --help.")


def _argument_as_option(error: Any) -> str:
    """Return how to write a command of which an argument was given as an option, such as --out; "" if none was."""
    parts = re.findall("[a-z]+", getattr(error, "option_name", "") or "")
    parameters = error.ctx.command.params if error.ctx else []
    places = [each.metavar or each.name for each in parameters if each.param_type_name == "argument"]
    names = [place.strip("{}").lower() for place in places]
    if not parts or OTHER_ARGUMENTS.get(parts[0], parts[0]) not in names:
        return ""
    return f"Write {error.ctx.command_path} {' '.join(name.upper() for name in names)}."


def _hint(error: Any, words: Sequence[str]) -> str:
    """Return what to type instead of an option without its dashes, or of a pattern without its option."""
    if words and words[0] in NOT_COMMANDS:
        return f" {NOT_COMMANDS[words[0]]}"
    options = [name for parameter in error.ctx.command.params for name in parameter.opts] if error.ctx else []
    pattern = next((name for name in ("--pattern", "--to") if name in options), None)
    misplaced = [word for before, word in pairwise(words) if ":" in word and before != pattern]
    if pattern and misplaced and misplaced[0].replace(":", "").isdigit():
        return f" Write {pattern} {misplaced[0]}."
    return ""


def _complain(program: str, message: str, code: int = 2) -> int:
    """Print an error and return the exit code for it."""
    text = message if len(message) <= MESSAGE else f"{message[:MESSAGE]} ..."
    print(f"{program}: {printable(text)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
