"""Tables in Markdown, and numbers in their cells."""

import math
from collections.abc import Sequence

NONE = "-"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown.

    Args:
        head: The titles of the columns.
        rows: The cells of each row.

    Example:
        >>> print(table(["a", "b"], [["1", "2"]]))
        | a | b |
        |---|---|
        | 1 | 2 |
    """
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(['---'] * len(head))}|"]
    for row in rows:
        cells = [" ".join(cell.split()).replace("|", "\\|") for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def format_number(value: float | None, form: str = ".4f") -> str:
    """Return a number as text, or a dash for None, NaN and infinity.

    Args:
        value: The number.
        form: Its format.

    Example:
        >>> format_number(0.5), format_number(None)
        ('0.5000', '-')
    """
    return NONE if value is None or not math.isfinite(value) else format(value, form)
