"""Draw the picture of the README: accuracy, size and time of one model, dense and sparse.

    python benchmarks/readme_picture.py

It reads the numbers from the tables of this repository and writes `docs/images/dense-and-sparse.svg`. The picture has a
background of its own, so that it is readable on light and dark pages.
"""

import re
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs/images/dense-and-sparse.svg"
ACCURACY = ROOT / "benchmarks/glue/results/fp32/comparison.md"
LOG = ROOT / "docs/research/log"
SIZES = LOG / "2026-11-29-packed-size-and-loading.md"
TIMES = LOG / "2026-11-29-packed-weights-on-a-cpu.md"
WIDTH, LABEL, BAR, GAP, LEFT, LONGEST = 640, 30, 27, 6, 150, 340
STYLE = """
svg { font: 17px system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; fill: #1f2328; }
.page { fill: #ffffff; stroke: #d1d9e0; } .dense { fill: #8c96a0; } .sparse { fill: #4051b5; } .lost { fill: #c9803f; }
.title { font-weight: 600; } .note { font-size: 15px; fill: #59636e; }
@media (prefers-color-scheme: dark) {
  svg { fill: #f0f6fc; } .page { fill: #151b23; stroke: #3d444d; } .note { fill: #9198a1; }
  .dense { fill: #7d8590; } .sparse { fill: #8d9bf5; } .lost { fill: #d9914f; }
}
"""


@dataclass(frozen=True)
class Bar:
    """One bar: its class, its label, its value, and the text behind it."""

    kind: str
    label: str
    value: float
    text: str


@dataclass(frozen=True)
class Panel:
    """Bars that share a scale, with a title and a note."""

    title: str
    note: str
    bars: tuple[Bar, ...]


def cells(page: Path, *firsts: str) -> list[str]:
    """Return the cells of the first row of a table whose first cells are these.

    Args:
        page: A Markdown file.
        *firsts: The first cells.
    """
    start = "| " + " | ".join(firsts) + " |"
    rows = [line for line in page.read_text().splitlines() if line.startswith(start)]
    if not rows:
        raise ValueError(f"{page} has no row that begins with {start!r}.")
    return [cell.strip() for cell in rows[0].strip("|").split("|")]


def number(text: str) -> float:
    """Return the first number of a text."""
    found = re.search(r"[\d.]+", text)
    if found is None:
        raise ValueError(f"{text!r} has no number.")
    return float(found[0])


def panels() -> list[Panel]:
    """Read the numbers from the tables."""
    dense, asp, admm = (number(cells(ACCURACY, f"`{name}`")[1]) for name in ("dense", "asp", "admm"))
    shown = (("dense", "dense", dense), ("sparse", "2:4", admm), ("lost", "2:4 at once", asp))
    accuracy = tuple(Bar(kind, label, value, f"{value:.3f}") for kind, label, value in shown)
    plain = number(cells(SIZES, "fp32 plain")[2])
    share = number(cells(SIZES, "fp32 packed")[2])
    size = _two(plain, plain * share / 100, "MB", 1)
    slow, fast = (number(cell) for cell in cells(TIMES, "MiniLM-L6", "8x128")[2:4])
    return [
        Panel("Accuracy", "mean of MRPC, CoLA and STS-B, fine-tuned, three seeds", accuracy),
        Panel("Size", "all weights, packed", size),
        Panel("Time", "8 x 128 tokens on one CPU thread", _two(slow, fast, "ms", 0)),
    ]


def _two(dense: float, sparse: float, unit: str, digits: int) -> tuple[Bar, ...]:
    texts = (f"{dense:.{digits}f} {unit}", f"{sparse:.{digits}f} {unit} ({sparse / dense:.0%})")
    return Bar("dense", "dense", dense, texts[0]), Bar("sparse", "2:4", sparse, texts[1])


def draw(shown: list[Panel]) -> str:
    """Return the picture as SVG.

    Args:
        shown: The panels, from the top down.
    """
    shapes, y = [], 40
    shapes.append(_text(20, y, "all-MiniLM-L6-v2 in float32, dense and 2:4", "title"))
    for panel in shown:
        y += LABEL + 12
        shapes.append(_text(20, y, panel.title, "title") + _text(LEFT, y, panel.note, "note"))
        y += 12
        longest = max(bar.value for bar in panel.bars)
        for bar in panel.bars:
            length = LONGEST * bar.value / longest
            shapes.append(_text(LEFT - 12, y + 20, bar.label, "", "end"))
            shapes.append(f'<rect class="{bar.kind}" x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" rx="3"/>')
            shapes.append(_text(round(LEFT + length) + 10, y + 20, bar.text))
            y += BAR + GAP
    height = y + 16
    label = escape(". ".join(f"{p.title}: " + ", ".join(f"{b.label} {b.text}" for b in p.bars) for p in shown))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">'
    page = f'<rect class="page" x="1" y="1" width="{WIDTH - 2}" height="{height - 2}" rx="10"/>'
    return "\n".join([head, f"<style>{STYLE}</style>", page, *shapes, "</svg>\n"])


def _text(x: int, y: int, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(draw(panels()))
