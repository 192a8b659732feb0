"""HTML parts that all pages share, from the macros of `parts.html.jinja`. They escape all text that is not `Markup`."""

from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from nxm_hf._version import __version__


def _breakable(name: str) -> Markup:
    """Return the name of a layer such that it can break after its dots on a narrow screen."""
    return escape(name).replace(".", Markup(".<wbr>")).replace("_", Markup("_<wbr>"))


_TEMPLATES = Environment(
    loader=PackageLoader("nxm_hf", "report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
)
_TEMPLATES.filters["breakable"] = _breakable
PARTS: Any = _TEMPLATES.get_template("parts.html.jinja").module  # its macros, as functions


def html_page(kind: str, title: str, sections: Sequence[Markup]) -> str:
    """Return a complete page that refers to no other file.

    Args:
        kind: The kind of the page, such as "Training report".
        title: Its heading.
        sections: Its sections.
    """
    return str(PARTS.page(kind, title, __version__, sections))


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]], row_headers: int = 0) -> Markup:
    """Return a table in a frame that scrolls.

    Args:
        header: The titles of the columns.
        rows: The cells of each row.
        row_headers: The number of first columns that are headings of their rows.
    """
    return PARTS.table(header, rows, row_headers)


def section(name: str, title: str, *parts: Markup) -> Markup:
    """Return a section of a page.

    Args:
        name: Its id, for links.
        title: Its heading.
        *parts: Its content.
    """
    return PARTS.section(name, title, parts)


def cards(figures: Sequence[Markup]) -> Markup:
    """Return figures side by side, as many as the page is wide.

    Args:
        figures: The figures.
    """
    return Markup('<div class="cards">{}</div>').format(Markup().join(figures)) if figures else Markup()


def paragraphs(css_class: str, sentences: Sequence[str]) -> Markup:
    """Return a paragraph for each sentence.

    Args:
        css_class: The class of the style sheet: "note", "none", "good" or "bad".
        sentences: The sentences.
    """
    return Markup().join(Markup('<p class="{}">{}</p>').format(css_class, sentence) for sentence in sentences)


def share_bar(share: float) -> Markup:
    """Return a horizontal bar.

    Args:
        share: The filled fraction, from 0 to 1.
    """
    return Markup('<span class="bar"><span style="width:{:.1%}"></span></span>').format(share)
