"""Hooks of MkDocs: links out of docs/ go to the repository, and the page of the command line is made from its help."""

import posixpath
import re
from typing import Any

import typer
from typer.main import get_command

from nxm_hf.cli.main import _app

REPOSITORY = "https://github.com/nxm-hf/nxm-hf/blob/main/"
LINK = re.compile(r"(?<=\]\()([^)\s:#]+)((?:#[^)\s]*)?)(?=\))")
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
WIDTH = 80  # of the text of `--help`
COMMANDS = "<!-- commands -->"


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Rewrite the Markdown of a page before it is rendered."""
    here = posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(here, found[1]))
        return found[0] if target.startswith("docs/") else REPOSITORY + target + found[2]

    parts = FENCE.split(markdown)
    parts[::2] = [LINK.sub(link, part) for part in parts[::2]]
    return "".join(parts).replace(COMMANDS, commands() if COMMANDS in markdown else "")


def commands() -> str:
    """Return a section for each command of `nxm`."""
    group: Any = get_command(_app())
    return "\n\n".join(_section(name, command) for name, command in group.commands.items())


def _section(name: str, command: Any) -> str:
    help_text = command.get_help(typer.Context(command, info_name=f"nxm {name}", terminal_width=WIDTH))
    return f"## nxm {name}\n\n```text\n{help_text.strip()}\n```"
