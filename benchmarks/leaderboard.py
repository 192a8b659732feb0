"""Put every recipe, task and pattern that was measured on all-MiniLM-L6-v2 into one table of the page of results.

    python benchmarks/leaderboard.py

It reads the pages of `benchmarks/glue/results`, and writes the rows between the marks of `docs/research/results.md`.
A new folder of results with a page needs no change here. The column "step" is computed from `benchmarks/step_costs`,
two files that `benchmarks/overhead.py` wrote.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nxm_hf import NxMConfig

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/glue/results"
PAGE = ROOT / "docs/research/results.md"
STEPS = ROOT / "benchmarks/step_costs"
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


def step_costs() -> dict[str, float]:
    """Return the CPU milliseconds that `optimizer.step()` takes more, by the recipe that was timed.

    "dense" is a whole step of dense training at 16x128 in fp32.
    """
    added, plain = (json.loads((STEPS / f"{name}.json").read_text())["rows"] for name in ("added", "plain"))
    return {row["recipe"]: row["step() more ms"] for row in added} | {"dense": plain[0]["plain ms"]}


def step_shares(recipe: str, pattern: str) -> dict[str, float]:
    """Return the recipes that were timed, with the share of the steps in which a recipe trains as they do.

    Scores are left out: they change only the one pruning.

    Args:
        recipe: The recipe with its settings.
        pattern: Its pattern.
    """
    name, *words = recipe.split()
    settings = dict(word.split("=") for word in words)
    first, last = (float(settings.pop(key, 0)) for key in ("warmup", "settle"))
    values = {key: float(value) if value[0].isdigit() else value for key, value in settings.items()}
    warmup, settle = NxMConfig(name, pattern, settings=values, warmup=first, settle=last).phases
    rest = 1 - warmup - settle
    shares = {"asp warmup=0.1": settle}  # a mask that is frozen in the middle of a training
    if name in ("alps", "asp"):
        shares = {"asp warmup=0.1" if warmup else "asp": rest}
    elif name == "admm":  # Z and U are updated about every 80 steps
        form = "admm rho=0.003" if "rho" in settings else "admm settle=0.05"
        shares |= {form: rest * 79 / 80, f"{form} steps=1": rest / 80}
    else:
        forms = {"fix": "fix settle=0.05", "fade": "fade warmup=0.05 settle=0.05"}  # nearly all steps in its own phase
        shares[forms.get(name, name)] = rest
    suffix = "" if pattern == "2:4" else f" pattern={pattern}"
    parts = {f"{timed}{suffix}": share for timed, share in shares.items()} | {"asp warmup=0.9": warmup}
    return {timed: share for timed, share in parts.items() if share}


def step_cost(recipe: str, pattern: str, costs: dict[str, float]) -> str:
    """Return the mean CPU time of a step over a dense one, or "-" if a part of it was not timed.

    Args:
        recipe: The recipe with its settings. A teacher was not timed.
        pattern: Its pattern.
        costs: What was timed, see `step_costs`.
    """
    if recipe == "dense":
        return "1.000"
    if "teacher=" in recipe:
        return "-"
    shares = step_shares(recipe, pattern)
    if not shares.keys() <= costs.keys():
        return "-"
    return f"{1 + sum(share * costs[timed] for timed, share in shares.items()) / costs['dense']:.3f}"


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
    costs: dict[str, float],
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
