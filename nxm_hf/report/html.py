"""HTML parts that all pages share: the frame of a page, sections, tables, and bars in cells."""

from collections.abc import Sequence
from html import escape

from nxm_hf._version import __version__
from nxm_hf.report.stylesheet import STYLE


class Html(str):
    """Text that is HTML already and must not be escaped."""


def html_page(kind: str, title: str, body: str) -> str:
    """Return a complete page that refers to no other file.

    Args:
        kind: What the page is, such as "Training report".
        title: Its heading, as plain text.
        body: Its sections, as HTML.
    """
    title = escape(title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{kind}: {title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<header>\n"
        f"<h1>{title}</h1>\n<p>{kind}, drawn by nxm_hf {__version__}</p>\n</header>\n<main>\n"
        f"{body}</main>\n</body>\n</html>\n"
    )


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]], row_headers: int = 0) -> str:
    """Return a table in a frame that scrolls.

    Args:
        header: The titles of the columns.
        rows: The cells of each row; a cell that is not `Html` is escaped.
        row_headers: The number of first columns that are headings of their rows.
    """
    titles = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(
        f"<tr>{''.join(_cell(cell, column < row_headers) for column, cell in enumerate(row))}</tr>" for row in rows
    )
    table = f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{table}</div>'


def section(name: str, title: str, body: str) -> str:
    """Return a section of a page.

    Args:
        name: Its id, for links.
        title: Its heading, as HTML.
        body: Its content, as HTML.
    """
    return f'<section id="{name}">\n<h2>{title}</h2>\n{body}\n</section>\n'


def cards(figures: Sequence[str]) -> str:
    """Return figures side by side, as many as the page is wide.

    Args:
        figures: The figures, as HTML.
    """
    return f'<div class="cards">{"".join(figures)}</div>' if figures else ""


def share_bar(share: float) -> Html:
    """Return a horizontal bar.

    Args:
        share: The filled fraction, from 0 to 1.
    """
    return Html(f'<span class="bar"><span style="width:{share:.1%}"></span></span>')


def escape_cell(cell: str) -> str:
    """Return the content of a cell as HTML.

    Args:
        cell: Plain text, or `Html`, which stays as it is.
    """
    return cell if isinstance(cell, Html) else escape(cell)


def _cell(cell: str, is_header: bool) -> str:
    text = escape_cell(cell)
    if not is_header:
        return f"<td>{text}</td>"
    # Lets the name of a layer break after its dots on a narrow screen.
    return f'<th scope="row">{text.replace(".", ".<wbr>").replace("_", "_<wbr>")}</th>'
