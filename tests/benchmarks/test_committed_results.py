"""The committed results are those that the guide of `nxm recipes` cites."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from benchmarks.glue.comparison import command_line
from benchmarks.glue.comparison.records import Plan, RecordFile
from nxm_hf.cli import recipe_guide
from tests.support.example_scripts import glue_data

RESULTS = Path(command_line.__file__).parents[1] / "results"
pytestmark = pytest.mark.skipif(not RESULTS.is_dir(), reason="a source distribution leaves the committed results out")


@pytest.mark.parametrize(
    "one", recipe_guide.MEASUREMENTS, ids=lambda one: f"{one.recipe} {one.pattern} on {'-'.join(one.tasks)}"
)
def test_what_the_guide_says_of_recipes_is_what_the_committed_results_say(one):
    folders = [path for path in (RESULTS).iterdir() if path.name != "demo"]
    assert one.gap_closed in [round(share, 2) for folder in folders for share in closed(folder, one)]


@cache
def planned_records(folder: Path) -> list[dict]:
    """Return the records that the plan shows, with the learning rates that were chosen."""
    return RecordFile(folder / "results.jsonl").of(Plan(folder / "plan.json").read()[0])


def closed(folder: Path, one: recipe_guide.Measurement) -> list[float]:
    """Return the share of the gap that a folder of results shows; none if it lacks the recipe, a task or seeds."""
    found: dict[tuple, float] = {}
    for record in planned_records(folder):
        if record["config"]["pattern"] in (one.pattern, "2:4"):
            best = record["metrics"][f"eval_{glue_data.TASKS[record['task']].best}"]
            found[record["recipe"].replace(f" pattern={one.pattern}", ""), record["task"], record["seed"]] = best
    of, shared = (one.name_in_results, "asp", "dense"), []
    for task in (name.lower().replace("-", "") for name in one.tasks):
        seeds = [seed for seed in range(9) if all((recipe, task, seed) in found for recipe in of)]
        if len(seeds) < one.seeds:
            return []
        shared.append([np.mean([found[recipe, task, seed] for seed in seeds]) for recipe in of])
    ours, low, high = np.mean(shared, axis=0)
    return [(ours - low) / (high - low)]
