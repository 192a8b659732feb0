"""Plain text for terminals and messages: tables, and lists cut short."""

from collections.abc import Sequence

MAX_ITEMS = 5  # that a message names before it counts the rest


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
