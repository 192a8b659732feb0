"""The entry point of `nxm`: choose a command, run it and return its exit code.

To add a command, write a function in `commands.py` or `prune_commands.py` and list it in COMMANDS.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from nxm_hf.cli.commands import (
    flops_command,
    inspect_command,
    recipes_command,
    report_command,
    rewind_command,
    verify_command,
)
from nxm_hf.cli.parser import Command, command_name, command_parser, did_you_mean, overview_parser
from nxm_hf.cli.prune_commands import convert_command, prune_command

COMMANDS = (
    verify_command,
    inspect_command,
    recipes_command,
    flops_command,
    prune_command,
    convert_command,
    rewind_command,
    report_command,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command of `nxm`.

    Args:
        arguments: The words after `nxm`; by default those of the running process.

    Returns:
        The exit code: that of the command, or 2 for wrong usage and for input that cannot be read.

    Example:
        >>> main(["--version"])
        nxm_hf ...
        0
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands = {command_name(command): command for command in COMMANDS}
    if not arguments:
        overview_parser(commands).print_help()
        return 2
    name, *rest = arguments
    try:
        if name in commands:
            return _run(commands[name], vars(command_parser(commands[name]).parse_args(rest)))
        if name.startswith("-"):
            overview_parser(commands).parse_args(arguments)
    except SystemExit as stop:  # argparse has printed its help or an error
        return int(stop.code or 0)
    known = f"the commands are {', '.join(commands)}.{did_you_mean([name], commands)}"
    return _complain("nxm", f"There is no command {name!r}; {known}")


def _run(command: Command, arguments: Mapping[str, Any]) -> int:
    """Call a command and print an expected error as one line."""
    try:
        code = command(**arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of our output has closed it, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, ValueError, ImportError) as error:
        return _complain(f"nxm {command_name(command)}", " ".join(str(error).split()))


def _complain(program: str, message: str) -> int:
    """Print an error and return the exit code for it."""
    print(f"{program}: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
