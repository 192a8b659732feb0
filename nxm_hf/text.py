"""A table of text."""

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be, under a line.

    >>> print(table(("layer", "density"), [("query", "0.5")]))
    layer  density
    -----  -------
    query  0.5
    """
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def shortened(words: Sequence[str], comma: str = ", ") -> str:
    """The first few words, and how many more there are.

    >>> shortened(["a", "b", "c", "d", "e", "f", "g"])
    'a, b, c, d, e, and 2 more'
    """
    more = f"{comma}and {len(words) - 5} more" if len(words) > 5 else ""
    return comma.join(words[:5]) + more
