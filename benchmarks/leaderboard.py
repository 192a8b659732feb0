"""Put every recipe, task and pattern that was measured on all-MiniLM-L6-v2 into one table of the page of results.

    python benchmarks/leaderboard.py

It reads the pages of `benchmarks/glue/results`, and writes the rows between the marks of `docs/research/results.md`.
A new folder of results with a page needs no change here.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/glue/results"
PAGE = ROOT / "docs/research/results.md"
COSTS = ROOT / "docs/research/log/2026-11-29-cost-of-a-recipe.md"
BEGIN, END = "<!-- leaderboard: begin -->\n", "<!-- leaderboard: end -->"
MODEL = "all-MiniLM-L6-v2"
OWN_PAGES = {"minilm": "RESULTS.md"}  # folders whose page stands elsewhere, written by hand around the same tables
# How tasks and metrics are written here; others as on their page.
TASKS = {"mrpc": "MRPC", "cola": "CoLA", "stsb": "STS-B"}
METRICS = {"f1": "F1", "matthews_correlation": "Matthews", "pearson": "Pearson"}
SECTION = re.compile(r"^(#{2,3}) (.+)$", re.MULTILINE)
COLUMNS = ("pattern", "task", "recipe", "seeds", "score", "above `dense`", "gap closed", "step", "FLOPs", "row")


@dataclass(frozen=True)
class Row:
    """A recipe with a pattern on a task, as one page has it; texts as they stand there."""

    pattern: str
    task: str
    recipe: str
    seeds: str
    score: str
    above_dense: str
    gap_closed: str
    step: str
    flops: str
    precision: str
    link: str

    @property
    def order(self) -> tuple[int, str, str, bool, float]:
        """Return what rows are sorted by: 2:4, other patterns, dense; then the task, and the most gap closed."""
        place = {"2:4": 0, "-": 2}.get(self.pattern, 1)
        return place, self.pattern, self.task, self.precision != "fp32", -number(self.gap_closed)

    @property
    def line(self) -> str:
        """Return the row in Markdown."""
        source = f"[{self.precision}]({self.link})"
        middle = (self.seeds, self.score, self.above_dense, self.gap_closed, self.step, self.flops)
        return "| " + " | ".join((self.pattern, self.task, f"`{self.recipe}`", *middle, source)) + " |"


def number(text: str) -> float:
    """Return the first number of a cell, or 0 if it has none."""
    found = re.search(r"-?[\d.]+", text)
    return float(found[0]) if found else 0.0


def tables(text: str) -> list[dict[str, dict[str, str]]]:
    """Read the tables of a text.

    Args:
        text: Markdown.

    Returns:
        For each table its rows by their first cell, without code marks. A row has its cells by the column's name.
    """
    found, rows = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            names, _, *rest = rows
            found.append({row[0].strip("`"): dict(zip(names, row, strict=True)) for row in rest})
            rows = []
    return found


def sections(text: str) -> Iterator[tuple[str, list[dict[str, dict[str, str]]]]]:
    """Give the sections of a page that show the scores of a task with the model of this table.

    Args:
        text: The page. One that names no model is of the model of this table.

    Returns:
        The heading of each and its tables, those of the scores, of the differences, and of the cost first.
    """
    model = MODEL
    headings = list(SECTION.finditer(text))
    for heading, following in zip(headings, [*headings[1:], None], strict=True):
        shown = tables(text[heading.end() : following.start() if following else None])
        scored = any("seeds" in row for table in shown[:1] for row in table.values())
        if heading[1] == "##" and not shown and "\n### " in text:
            model = heading[2]
        if scored and model == MODEL:
            yield heading[2], shown


def pages() -> dict[Path, str]:
    """Return the pages of results with the precision of their trainings."""
    found = {}
    for plan in sorted(RESULTS.glob("*/plan.json")):
        folder = plan.parent
        own = OWN_PAGES.get(folder.name)
        page = RESULTS.parent / own if own else folder / "comparison.md"
        options = {option for cell in json.loads(plan.read_text())["cells"] for option in cell["more"]}
        if page.exists():
            found[page] = "bf16" if "--bf16" in options else "fp32"
    return found


def step_costs() -> dict[str, str]:
    """Return what a training step takes over a dense one at 16x128 in fp32, by the recipe that was timed."""
    table = next(table for table in tables(COSTS.read_text()) if "asp" in table)
    return {recipe: row["16x128 fp32"].split(" → ")[1].split(" ")[0] for recipe, row in table.items()}


def step_cost(recipe: str, pattern: str, costs: dict[str, str]) -> str:
    """Return the cost of a step of a recipe, or "-" if it was not timed.

    Scores change nothing but the time of the one pruning. The timed `asp warmup=0.1` trains as `asp warmup=0.5` does.

    Args:
        recipe: The recipe with its settings.
        pattern: Its pattern; other patterns than 2:4 were not timed.
        costs: What was timed, see `step_costs`.
    """
    if recipe == "dense":
        return "1.000"
    words = [word for word in recipe.split() if not word.startswith(("scores=", "grad="))]
    name = " ".join("warmup=0.1" if word.startswith("warmup=") else word for word in words)
    return costs.get(name, "-") if pattern == "2:4" else "-"


def rows() -> list[Row]:
    """Return all rows of the table."""
    costs = step_costs()
    found = []
    for path, precision in pages().items():
        address = f"../../{path.relative_to(ROOT)}"
        for heading, (scores, differences, computing, *_) in sections(path.read_text()):
            shown = [label for label in scores if label in computing]  # all but the same answer always
            link = f"{address}#{heading.lower()}"
            found += [
                _row(label, heading, scores[label], differences[label], computing[label], costs, precision, link)
                for label in shown
            ]
    return sorted(found, key=lambda row: row.order)


def _row(
    label: str,
    heading: str,
    scores: dict[str, str],
    differences: dict[str, str],
    computing: dict[str, str],
    costs: dict[str, str],
    precision: str,
    link: str,
) -> Row:
    words = label.split()
    recipe = " ".join(word for word in words if not word.startswith("pattern="))
    pattern = next((word[8:] for word in words if word.startswith("pattern=")), "2:4")
    metric = list(scores)[2]
    is_dense = recipe == "dense"
    return Row(
        pattern="-" if is_dense else pattern,
        task=f"{TASKS.get(heading.lower(), heading)}, {METRICS.get(metric, metric)}",
        recipe=recipe,
        seeds=scores["seeds"],
        score=scores[metric].split(" ±")[0],
        above_dense="-" if is_dense else differences["above dense"],
        gap_closed="-" if is_dense else scores["gap closed"],
        step=step_cost(recipe, pattern, costs),
        flops=computing["training FLOPs"],
        precision=precision,
        link=link,
    )


def page(text: str, shown: list[Row]) -> str:
    """Return the page of results with these rows between its marks.

    Args:
        text: The page as it is.
        shown: The rows.

    Raises:
        ValueError: The page has no marks.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE} needs the marks {BEGIN.strip()!r} and {END!r}. Write them around the table.")
    head = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    return before + begin + "\n".join([*head, *(row.line for row in shown)]) + "\n" + end + after


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(), rows()))
