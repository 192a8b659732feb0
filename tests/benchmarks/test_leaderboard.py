"""The leaderboard: it shows what the pages of results show, and is made anew when they change."""

import json

import pytest

from benchmarks import leaderboard
from benchmarks.glue.comparison.records import Plan, RecordFile
from benchmarks.leaderboard import (
    BEGIN,
    END,
    PAGE,
    RESULTS,
    page,
    pages,
    rows,
    sections,
    step_cost,
    step_shares,
    tables,
)

needs_results = pytest.mark.skipif(not RESULTS.exists(), reason="needs benchmarks/glue/results")
TEXT = """# Comparison

## all-MiniLM-L6-v2

### All tasks

| recipe | mean of tasks |
|---|---|
| `asp` | 1 |

### cola

| recipe | seeds | matthews_correlation | gap closed |
|---|---|---|---|
| *the same answer always* | - | 0.0 | - |
| `dense` | 2 | 0.3000 ± 0.0100 | - |
| `asp pattern=1:4` | 1 | 0.1000 | 0.0% |
| `admm pattern=1:4` | 1 | 0.2000 | 50.0% ? |

| matthews_correlation | above asp | above dense |
|---|---|---|
| `dense` | - | - |
| `asp pattern=1:4` | - | -0.2 [-0.3, -0.1] |
| `admm pattern=1:4` | +0.1 [+0.0, +0.2] | -0.1 [-0.2, +0.0] |

| recipe | training FLOPs | with |
|---|---|---|
| `dense` | 1.000 | learning_rate=1e-4 |
| `asp pattern=1:4` | 0.763 | learning_rate=1e-4 |
| `admm pattern=1:4` | 0.882 | learning_rate=1e-4 |

### Notes
"""


@needs_results
def test_the_committed_table_is_the_one_that_the_pages_give():
    assert PAGE.read_text() == page(PAGE.read_text(), rows()), "run python benchmarks/leaderboard.py"


@needs_results
def test_every_measured_recipe_and_task_of_a_folder_is_a_row_with_as_many_seeds():
    for path in pages():
        folder = RESULTS / "minilm" if path.name == "RESULTS.md" else path.parent
        measured: dict[tuple, set[int]] = {}
        for record in RecordFile(folder / "results.jsonl").of(Plan(folder / "plan.json").read()[0]):
            if record["model"] == leaderboard.MODEL:
                recipe = " ".join(word for word in record["recipe"].split() if not word.startswith("pattern="))
                pattern = "-" if recipe == "dense" else record["config"]["pattern"]
                measured.setdefault((record["task"], recipe, pattern), set()).add(record["seed"])
        shown = {
            (row.task.split(",")[0].lower().replace("-", ""), row.recipe, row.pattern): int(row.seeds)
            for row in rows()
            if row.link.split("#")[0].endswith(str(path.relative_to(leaderboard.ROOT)))
        }
        assert shown == {key: len(seeds) for key, seeds in measured.items()}, path


def test_a_page_gives_rows_in_order_with_their_numbers_and_link(tmp_path, monkeypatch):
    folder = tmp_path / "benchmarks/glue/results/mine"
    folder.mkdir(parents=True)
    (folder / "comparison.md").write_text(TEXT)
    (folder / "plan.json").write_text(json.dumps({"cells": [{"more": ["--bf16"]}]}))
    (tmp_path / "added.json").write_text(json.dumps({"rows": [{"recipe": "asp pattern=1:4", "step() more ms": 8.0}]}))
    (tmp_path / "plain.json").write_text(json.dumps({"rows": [{"plain ms": 2000.0}]}))
    for name, value in (("ROOT", tmp_path), ("RESULTS", folder.parent), ("STEPS", tmp_path)):
        monkeypatch.setattr(leaderboard, name, value)
    link = "[bf16](../../benchmarks/glue/results/mine/comparison.md#cola)"
    assert [row.line for row in rows()] == [
        f"| 1:4 | CoLA, Matthews | `admm` | 1 | 0.2000 | -0.1 [-0.2, +0.0] | 50.0% ? | - | 0.882 | {link} |",
        f"| 1:4 | CoLA, Matthews | `asp` | 1 | 0.1000 | -0.2 [-0.3, -0.1] | 0.0% | 1.004 | 0.763 | {link} |",
        f"| - | CoLA, Matthews | `dense` | 2 | 0.3000 | - | - | 1.000 | 1.000 | {link} |",
    ]


def test_sections_of_other_models_are_left_out():
    assert [heading for heading, _ in sections(TEXT)] == ["cola"]
    assert not list(sections(TEXT.replace("all-MiniLM-L6-v2", "bert-base-uncased")))
    assert [heading for heading, _ in sections(TEXT.replace("## all-MiniLM-L6-v2\n", ""))] == ["cola"]


def test_a_step_has_the_mean_cost_of_the_phases_that_were_timed():
    costs = {"dense": 1000.0, "asp": 8.0, "asp warmup=0.1": 4.0, "asp warmup=0.9": 2.0, "sr-ste": 9.0}
    costs |= {"admm settle=0.05": 10.0, "admm settle=0.05 steps=1": 82.0, "fix settle=0.05": 12.0}
    costs["asp pattern=1:4"] = 7.0
    for recipe, cost in {
        "dense": "1.000",
        "asp scores=alps": "1.008",
        "asp scores=alps warmup=0.5": "1.003",
        "sr-ste": "1.009",
        "admm": "1.007",  # half of its steps at 11, half at 4
        "admm settle=0.3 scores=magnitude": "1.009",
        "fix": "1.008",
        "admm rho=1e-2": "-",
        "regularize": "-",
        "sr-ste teacher=dense": "-",
    }.items():
        assert step_cost(recipe, "2:4", costs) == cost, recipe
    assert (step_cost("asp", "1:4", costs), step_cost("admm", "1:4", costs)) == ("1.007", "-")


def test_the_shares_of_the_steps_add_up_to_a_training():
    for recipe in ("asp", "asp warmup=0.3", "admm", "admm rho=1e-2", "admm settle=0.3 warmup=0.2", "fix", "mask-decay"):
        shares = step_shares(recipe, "2:4")
        assert sum(shares.values()) == pytest.approx(1) and all(share > 0 for share in shares.values()), recipe
    assert step_shares("admm", "4:8").keys() == {
        f"{timed} pattern=4:8" for timed in ("admm settle=0.05", "admm settle=0.05 steps=1", "asp warmup=0.1")
    }
    assert step_shares("asp warmup=0.25", "1:4") == {"asp warmup=0.1 pattern=1:4": 0.75, "asp warmup=0.9": 0.25}


@needs_results
def test_every_row_without_a_teacher_has_the_cost_of_a_step():
    assert all((row.step == "-") == ("teacher=" in row.recipe) for row in rows())


def test_the_page_keeps_what_is_around_the_marks():
    row = leaderboard.Row("2:4", "CoLA", "asp", "1", "0.1", "-", "0%", "1.0", "1.0", "fp32", "x.md")
    made = page(f"# Results\n\n{BEGIN}old\n{END}\nafter", [row])
    before, after = made.split(BEGIN)[0], made.split(END)[1]
    assert (before, after) == ("# Results\n\n", "\nafter") and "old" not in made and row.line in made
    assert page(made, [row]) == made
    with pytest.raises(ValueError, match="needs the marks"):
        page("# Results", [row])


def test_tables_are_read_by_their_first_cell():
    assert tables("text\n| a | b |\n|---|---|\n| `x` | 1 |\n\n| c |\n|---|\n| y |") == [
        {"x": {"a": "`x`", "b": "1"}},
        {"y": {"c": "y"}},
    ]
