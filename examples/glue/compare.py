"""Compare recipes on GLUE: recipes × seeds × a grid, on equal data, order and budget; killed, it goes on where it was.

    python compare.py --model_name_or_path bert-base-uncased --tasks mrpc cola --recipes dense asp admm \
        --seeds 0 1 2 --grid learning_rate=3e-5,1e-4,3e-4 --output_dir out/compare --num_train_epochs 4

A recipe is written with what differs from its defaults: `"mask-decay grad=ste pattern=4:8"`. Every point of the grid is
tried on a tenth of the training rows held out; the best one is then trained on all of them with each seed, and only
these models see the validation rows. Options that are not named here go to `run_glue.py` as they are.
"""

import argparse
import hashlib
import itertools
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import transformers
from run_glue import TASKS

import nxm_hf
from nxm_hf import NxMConfig

RUN_GLUE = str(Path(__file__).with_name("run_glue.py"))
HELD_OUT = 0.1


@dataclass(frozen=True)
class Cell:
    """One training: all that decides its result, and so its name."""

    task: str
    recipe: str  # as it was written
    seed: int
    grid: tuple[tuple[str, str], ...] = ()  # options of `run_glue.py`, or settings of the recipe
    hold_out: float = 0.0
    model: str = ""
    more: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """A short name that no other cell has."""
        told = json.dumps(asdict(self), sort_keys=True)
        return f"{self.task}-{self.recipe.split()[0]}-{self.seed}-{hashlib.sha256(told.encode()).hexdigest()[:10]}"

    @property
    def config(self) -> NxMConfig:
        """What the recipe's words say, with those of the grid that are its own."""
        return read_recipe(self.recipe).changed(**{key: number(value) for key, value in self.grid if is_ours(key)})

    def words(self, folder: Path) -> list[str]:
        """The command line of `run_glue.py`."""
        config, words = self.config, []
        for name in ("recipe", "pattern", "settings", "warmup", "settle"):
            value = getattr(config, name)
            words += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
        for key, value in self.grid:
            words += [] if is_ours(key) else [f"--{key}", value]
        words += ["--model_name_or_path", self.model, "--task_name", self.task, "--seed", str(self.seed)]
        words += ["--do_train", "--do_eval", "--save_strategy", "no", "--hold_out", str(self.hold_out)]
        return [*words, *self.more, "--output_dir", str(folder)]


def is_ours(key: str) -> bool:
    """Whether a key of the grid belongs to the recipe, rather than to `TrainingArguments`."""
    return key not in transformers.TrainingArguments.__dataclass_fields__


def number(text: str):
    """A value as JSON has it, or else a word."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def read_recipe(text: str) -> NxMConfig:
    """`"admm settle=0.3 rho=0.01"`, as a config.

    >>> read_recipe("admm settle=0.3 rho=0.01").settings
    {'rho': 0.01}
    """
    name, *changes = text.split()
    pairs = dict(change.partition("=")[::2] for change in changes)
    return NxMConfig(name).changed(**{key: number(value) for key, value in pairs.items()})


# -- results ------------------------------------------------------------------------------------------------------


@dataclass
class Results:
    """The finished cells, a line of JSON each, in a file that is only ever added to."""

    path: Path
    records: dict[str, dict] = field(default_factory=dict)

    def __post_init__(self):
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        lines = text.split("\n")
        if lines[-1]:  # a line that a kill cut off
            self.path.write_text("".join(line + "\n" for line in lines[:-1]), encoding="utf-8")
        for line in filter(None, lines[:-1]):
            record = json.loads(line)
            self.records[record["name"]] = record

    def add(self, record: dict) -> None:
        self.records[record["name"]] = record
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def of(self, cells: Iterable[Cell]) -> list[dict]:
        return [self.records[cell.name] for cell in cells if cell.name in self.records]


def read_predictions(path: Path) -> tuple[list[str], list[str]]:
    """The predictions and the labels of a file that `run_glue.py` wrote."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    return [row[1] for row in rows], [row[2] for row in rows]


def summary(cell: Cell, folder: Path, seconds: float) -> dict:
    """What is kept of a finished cell: numbers, and no row of data."""
    metrics = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    similarity = [record["nxm/mask_similarity"] for record in history if record.get("nxm/phase") == 1]
    said, true = read_predictions(next(folder.glob("eval_results_*.txt")))
    labels = TASKS[cell.task].labels
    recalls = {
        label: sum(a == b == label for a, b in zip(said, true, strict=True)) / max(true.count(label), 1)
        for label in labels
    }
    return {
        "name": cell.name,
        **asdict(cell),
        "config": cell.config.to_dict(),
        "metrics": metrics,
        "recall": recalls,
        "majority": max((true.count(label) / len(true) for label in labels), default=None),
        "predictions": [labels.index(word) if labels else float(word) for word in said],
        "mask_similarity": sum(similarity) / len(similarity) if similarity else None,
        "seconds": round(seconds, 1),
        "versions": {"nxm_hf": nxm_hf.__version__, "transformers": transformers.__version__},
    }


# -- running ------------------------------------------------------------------------------------------------------


@dataclass
class Workshop:
    """Where cells are run, several at a time; each in a folder of its own until it is whole."""

    folder: Path
    devices: Sequence[str]  # one worker for each; "" is whatever the process sees
    keep_models: bool = False

    def __post_init__(self):
        (self.folder / "cells").mkdir(parents=True, exist_ok=True)
        self.results = Results(self.folder / "results.jsonl")
        self.lock = threading.Lock()

    def run(self, cells: Sequence[Cell]) -> None:
        """Run what is not finished; a cell that fails does not stop the others, but all of them together fail."""
        waiting: queue.SimpleQueue[Cell] = queue.SimpleQueue()
        left = [cell for cell in dict.fromkeys(cells) if cell.name not in self.results.records]
        print(f"{len(cells)} cells, {len(left)} to run", flush=True)
        for cell in left:
            waiting.put(cell)
        failed: list[Cell] = []
        workers = [threading.Thread(target=self._work, args=(device, waiting, failed)) for device in self.devices]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if failed:
            logs = ", ".join(str(self._place(cell).with_suffix(".log")) for cell in failed)
            raise SystemExit(f"{len(failed)} of {len(left)} cells failed; their logs: {logs}. The others are kept.")

    def _work(self, device: str, waiting: queue.SimpleQueue, failed: list[Cell]) -> None:
        while True:
            try:
                cell = waiting.get_nowait()
            except queue.Empty:
                return
            record = self._try(cell, device)
            with self.lock:
                if record is None:
                    failed.append(cell)
                    continue
                self.results.add(record)
                main = TASKS[cell.task].best
                done = f"{main} {record['metrics'][f'eval_{main}']:.4f}, {record['seconds']:.0f} s"
                print(f"{cell.name}  {cell.recipe}  {dict(cell.grid)}  {done}", flush=True)

    def _place(self, cell: Cell) -> Path:
        return self.folder / "cells" / cell.name

    def _try(self, cell: Cell, device: str) -> dict | None:
        """Train a cell; a kill leaves only a partial folder behind, which is not looked at again."""
        place = self._place(cell)
        partial = place.with_name(f"{cell.name}.partial-{os.getpid()}")
        environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": device} if device else {})}
        began = time.perf_counter()
        with place.with_suffix(".log").open("w", encoding="utf-8") as log:
            command = [sys.executable, RUN_GLUE, *cell.words(partial)]
            code = subprocess.run(command, stdout=log, stderr=log, env=environment).returncode
        if code:
            return None
        record = summary(cell, partial, time.perf_counter() - began)
        if not self.keep_models:
            for path in partial.glob("*.safetensors"):
                path.unlink()
        shutil.rmtree(place, ignore_errors=True)
        partial.rename(place)
        return record


# -- what is compared ---------------------------------------------------------------------------------------------


def grid_points(grid: Sequence[str]) -> Iterator[tuple[tuple[str, str], ...]]:
    """Every combination of `key=a,b,c` options.

    >>> list(grid_points(["learning_rate=1,2"]))
    [(('learning_rate', '1'),), (('learning_rate', '2'),)]
    """
    axes = []
    for axis in grid:
        key, equals, values = axis.partition("=")
        if not equals or not values:
            raise SystemExit(f"--grid {axis!r} is not of the form learning_rate=3e-5,1e-4; write the values after '='.")
        axes.append([(key, value) for value in values.split(",")])
    return itertools.product(*axes)


def choose(workshop: Workshop, tried: Sequence[Cell]) -> tuple[tuple[str, str], ...]:
    """The point of the grid that was best on the rows held out, on the mean of the seeds tried."""
    scores: dict[tuple, list[float]] = {}
    for cell in tried:
        metric = workshop.results.records[cell.name]["metrics"][f"eval_{TASKS[cell.task].best}"]
        scores.setdefault(cell.grid, []).append(metric)
    return max(scores, key=lambda point: sum(scores[point]) / len(scores[point]))


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--tasks", nargs="+", default=["mrpc"], choices=[*TASKS])
    parser.add_argument("--recipes", nargs="+", default=["dense", "asp", "admm"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--grid", nargs="+", default=["learning_rate=1e-4"], help="key=a,b,c; of one point: no choice")
    parser.add_argument("--search_seeds", nargs="+", type=int, default=[0], help="that the grid is tried with")
    parser.add_argument("--devices", nargs="+", default=[""], help="CUDA devices, or '' '' for two processes")
    parser.add_argument("--keep_models", action="store_true", help="keep the weights of every cell")
    parser.add_argument("--output_dir", default="out/compare")
    options, more = parser.parse_known_args(words)
    for recipe in options.recipes:
        read_recipe(recipe)  # a typo fails now
    workshop = Workshop(Path(options.output_dir), options.devices, options.keep_models)
    points = list(grid_points(options.grid))
    shared = {"model": options.model_name_or_path, "more": tuple(more)}
    kinds = [(task, recipe) for task in options.tasks for recipe in options.recipes]
    chosen = dict.fromkeys(kinds, points[0])
    if len(points) > 1:
        tried = {
            (task, recipe): [
                Cell(task, recipe, seed, point, HELD_OUT, **shared) for point in points for seed in options.search_seeds
            ]
            for task, recipe in kinds
        }
        workshop.run([cell for cells in tried.values() for cell in cells])
        chosen = {kind: choose(workshop, cells) for kind, cells in tried.items()}
    cells = [
        Cell(task, recipe, seed, chosen[task, recipe], **shared) for seed in options.seeds for task, recipe in kinds
    ]
    workshop.run(cells)
    return 0


if __name__ == "__main__":
    sys.exit(main())
