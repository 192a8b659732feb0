"""Tables that show several runs side by side: a column for each run, or a group of columns."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from nxm_hf.report.html import html_table, paragraphs

NO_VALUE = "-"
Cells = tuple[str, ...]

DIFFERS = "Bold: differs between the runs."


def quantities(names: Sequence[str], columns: Sequence[Mapping[str, str]]) -> Markup:
    """Return a table with a row for each quantity and a column for each run. What differs between runs is bold.

    Args:
        names: The names of the runs.
        columns: For each run its quantities, by name.

    Returns:
        The table, or an empty text if there is no quantity.
    """
    rows = []
    for key in dict.fromkeys(key for column in columns for key in column):
        cells = [column.get(key, NO_VALUE) for column in columns]
        if len(set(cells)) > 1:
            cells = [Markup("<b>{}</b>").format(cell) for cell in cells]
        rows.append([key, *cells])
    if not rows:
        return Markup()
    return html_table(["", *names], rows, row_headers=1) + paragraphs("note", [DIFFERS] if len(names) > 1 else [])


def rows_by_name(
    names: Sequence[str],
    header: Sequence[str],
    columns: Sequence[str],
    runs: Sequence[Mapping[str, tuple[Cells, Cells]]],
) -> Markup:
    """Return a table with a row for each layer or role, and a group of columns for each run.

    Args:
        names: The names of the runs.
        header: The titles of the first columns, which describe the row.
        columns: The titles of the columns of a run.
        runs: For each run, the first cells and the run's own cells of each row, by the name of the row.

    Returns:
        The table, or an empty text if no run has a row.
    """
    fixed: dict[str, Cells] = {}
    for run in runs:
        for key, (cells, _) in run.items():
            fixed.setdefault(key, cells)
    if not fixed:
        return Markup()
    missing = (NO_VALUE,) * len(columns)
    rows = [
        [key, *cells, *(cell for run in runs for cell in run.get(key, (cells, missing))[1])]
        for key, cells in fixed.items()
    ]
    titles = [f"{name}: {title}" if title and len(names) > 1 else title for name in names for title in columns]
    return html_table([*header, *titles], rows, row_headers=1)
