"""Text for terminals, messages and Markdown: tables, lists cut short, and names that may be a stranger's."""

import re
from collections.abc import Sequence

MAX_ITEMS = 5  # that a message names before it counts the rest
_SPECIAL = re.compile(r"[^\w\s.,:;/=+@()-]")  # characters that can mean something in Markdown
_SPECIAL_IN_CODE = re.compile(r"[`<>|]|\]\(")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows of text in aligned columns, below a header and a rule.

    Args:
        header: The titles of the columns.
        rows: The cells of each row, as many as there are titles.

    Returns:
        The table, one line per row, without spaces at the ends of lines.

    Example:
        >>> print(table(("layer", "density"), [("query", "0.5")]))
        layer  density
        -----  -------
        query  0.5
    """
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def shortened(items: Sequence[str], separator: str = ", ") -> str:
    """Join the first five items and count the rest.

    Args:
        items: The texts to list.
        separator: The text between two items.

    Returns:
        The list as one line of text.

    Example:
        >>> shortened(["a", "b", "c", "d", "e", "f", "g"])
        'a, b, c, d, e, and 2 more'
    """
    more = f"{separator}and {len(items) - MAX_ITEMS} more" if len(items) > MAX_ITEMS else ""
    return separator.join(items[:MAX_ITEMS]) + more


def printable(text: str) -> str:
    r"""Write the control characters of a text as escapes, so that a terminal does not obey them. Line ends stay.

    Args:
        text: The text.

    Example:
        >>> print(printable("layer\x1b[2J"))
        layer\x1b[2J
    """
    return "".join(c if c == "\n" or c.isprintable() else ascii(c)[1:-1] for c in text)


def markdown_text(text: str) -> str:
    """Write a text in one line of Markdown, where it cannot become a link, a tag, a cell or a heading.

    Args:
        text: The text.

    Example:
        >>> markdown_text("my model_v1.0"), markdown_text("a|b")
        ('my model_v1.0', 'a&#124;b')
    """
    return _SPECIAL.sub(_entity, _one_line(text))


def markdown_code(text: str) -> str:
    """Write a text in one line of Markdown as code.

    Args:
        text: The text.

    Returns:
        The text between backticks. If it holds a character that could end them, a table cell or a comment, it is a
        `<code>` element with entities.

    Example:
        >>> markdown_code("layer.0"), markdown_code("a|b")
        ('`layer.0`', '<code>a&#124;b</code>')
    """
    line = _one_line(text)
    if line and not _SPECIAL_IN_CODE.search(line):
        return f"`{line}`"
    return f"<code>{_SPECIAL.sub(_entity, line)}</code>"


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def _entity(found: re.Match[str]) -> str:
    return f"&#{ord(found[0])};"
