r"""Compare recipes on GLUE: recipes × seeds × a grid, on equal data, order and budget; killed, it goes on where it was.

    python compare.py --model_name_or_path bert-base-uncased --tasks mrpc cola \
        --recipes dense asp sr-ste "admm settle=0.3" --seeds 0 1 2 --grid learning_rate=3e-5,1e-4,3e-4 \
        --output_dir out/compare --num_train_epochs 4

A recipe is written with what differs from its defaults: `"mask-decay grad=ste pattern=4:8"`. Every point of the grid is
tried on a tenth of the training rows held out; the best one is then trained on all of them with each seed, and only
these models see the validation rows. Options that are not named here go to `run_glue.py` as they are.

`--tasks demo` needs neither network nor data: its model and rows are made in the output directory.

At the end it writes `comparison.md`, with tables, intervals and plots, into the output directory; `--render` does only
that.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import demo
from comparing.arms import PRESETS, SWEEPS, Arm, Grid, Point, check_small, points, preset_grid, read_grid, sweep_arms
from comparing.cells import HELD_OUT, Cell, check_cell, check_key, check_more, read_recipe, read_teaching
from comparing.comparison import PAGE, render
from comparing.points import best_first
from comparing.results import BUDGETS, Plan
from comparing.search import Search, read_space
from comparing.shapes import Shape, option
from comparing.workshop import CellsFailed, Workshop
from run_glue import TASKS

DEMO = "demo"
PRESET_HELP = """nxmtransformer: Table 3 of the paper. CoLA, STS-B, MRPC, RTE (and WNLI): learning rates 5e-5, 7e-5,
9e-5, 1e-4, rho 3e-3, 6e-3, 1e-2, 10 epochs. MNLI, QNLI, SST-2 (and QQP): 1e-5, 3e-5, 5e-5, rho 4e-4, 1e-3, 3e-3,
5 epochs. Batches of 16 and 32 everywhere; rho for recipes that have it; dense and asp with the paper's rates for them.
The paper took the best result on the validation rows; here it is chosen on rows held out."""


@dataclass(frozen=True)
class Comparison:
    """What a command line asks for."""

    model: str
    tasks: Sequence[str]
    arms: Sequence[Arm]
    seeds: Sequence[int]
    search_seeds: Sequence[int]
    more: tuple[str, ...]
    grid: Grid
    preset: str | None = None

    @property
    def kinds(self) -> list[tuple[str, Arm]]:
        """Every arm on every task."""
        return [(task, arm) for task in self.tasks for arm in self.arms]

    def cell(self, task: str, arm: Arm, seed: int, point: Point, hold_out: float = 0.0) -> Cell:
        """A cell of an arm, with its own budget."""
        return Cell(
            task,
            arm.recipe,
            seed,
            (*point, *arm.extra),
            hold_out,
            self.model,
            self.more if arm.more is None else arm.more,
        )

    def points(self, task: str, arm: Arm) -> list[Point]:
        """The points of the grid that an arm is tried with."""
        grid = preset_grid(self.preset, task, arm.recipe, self.more) | self.grid if self.preset else self.grid
        return points({key: values for key, values in grid.items() if key not in dict(arm.extra)}, arm.recipe)

    def tried(self, task: str, arm: Arm) -> list[Cell]:
        """The cells that a point is chosen by; none where there is nothing to choose."""
        found = self.points(task, arm)
        if len(found) == 1:
            return []
        return [self.cell(task, arm, seed, point, HELD_OUT) for point in found for seed in self.search_seeds]

    def final(self, chosen: dict[tuple[str, Arm], Point]) -> list[Cell]:
        """The cells that are compared."""
        return [self.cell(*kind, seed, chosen[kind]) for seed in self.seeds for kind in self.kinds]

    def check(self) -> None:
        """Refuse now what would fail in hours: recipes, keys, values, options and the model."""
        check_more(self.more)
        recipes = list(dict.fromkeys(arm.recipe for arm in self.arms))
        for recipe in recipes:
            read_recipe(recipe)
            read_teaching(recipe)
        for key in self.grid:
            check_key(key, recipes)
        check_small(recipes, self.more)
        try:
            Shape.of(self.model, self.tasks[0], self.more).build()
        except OSError as error:
            raise ValueError(f"{self.model} is no model that can be read: {str(error).splitlines()[0]}") from None
        for kind in self.kinds:
            for point in self.points(*kind):
                check_cell(self.cell(*kind, self.seeds[0], point))


def choose(workshop: Workshop, tried: Sequence[Cell]) -> Point:
    """The point of the grid that was best on the rows held out, on the mean of the seeds tried."""
    return best_first(workshop.results.of(tried))[0][0]


def choose_by_grid(asked: Comparison, workshop: Workshop) -> dict[tuple[str, Arm], Point]:
    """The best point for each arm on each task, without what sets its budget apart."""
    tried = {kind: asked.tried(*kind) for kind in asked.kinds}
    workshop.run([cell for cells in tried.values() for cell in cells])
    return {
        kind: tuple(pair for pair in choose(workshop, cells) if pair not in kind[1].extra)
        if cells
        else asked.points(*kind)[0]
        for kind, cells in tried.items()
    }


def choose_by_search(asked: Comparison, workshop: Workshop, options) -> dict[tuple[str, Arm], Point]:
    """The same, by Optuna."""
    storage = options.storage or f"sqlite:///{workshop.folder / 'search.db'}"
    search = Search(workshop, read_space(options.space), options.search, asked.search_seeds, storage)
    cells = [asked.cell(*kind, asked.search_seeds[0], asked.points(*kind)[0], HELD_OUT) for kind in asked.kinds]
    found = search.run(cells)
    return {
        kind: tuple(pair for pair in point if pair not in kind[1].extra)
        for kind, point in zip(asked.kinds, found, strict=True)
    }


def read_options(words: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The options of this command, and those for `run_glue.py`."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog=f"Presets: {PRESET_HELP}", allow_abbrev=False
    )
    parser.add_argument("--model_name_or_path", help="a Hub model, or a directory")
    parser.add_argument("--tasks", nargs="+", default=["mrpc"], choices=[*TASKS], metavar="TASK", help=", ".join(TASKS))
    parser.add_argument(
        "--recipes",
        nargs="+",
        default=["dense", "asp", "admm"],
        help="as written: 'admm settle=0.3'; with 'teacher=dense' it learns from the dense training of its seed; "
        "'small' is a narrower dense model of as many weights, for models trained from scratch",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--grid", nargs="+", help="key=a,b,c of run_glue.py or of recipes (default: learning_rate=1e-4)"
    )
    parser.add_argument("--preset", choices=[*PRESETS], help="a paper's grid, see below")
    parser.add_argument("--search", type=int, metavar="N", help="N trials of Optuna for each task and recipe")
    parser.add_argument(
        "--space", nargs="+", default=["learning_rate=1e-5:1e-3:log"], help="key=low:high[:log|:int] or a,b"
    )
    parser.add_argument(
        "--storage", help="URL of the trials, to share between machines (default: sqlite in output_dir)"
    )
    parser.add_argument("--search_seeds", nargs="+", type=int, default=[0], help="that a point is tried with")
    parser.add_argument("--sweep", nargs="+", default=[], metavar="NAME[=a,b]", help=f"of {', '.join(SWEEPS)}")
    parser.add_argument("--devices", nargs="+", default=[""], help="CUDA devices, or '' '' for two processes")
    parser.add_argument("--keep_models", action="store_true", help="keep the weights of every cell")
    parser.add_argument("--render", action="store_true", help=f"only write {PAGE} from what is finished")
    parser.add_argument("--output_dir", default="out/compare")
    return parser.parse_known_args(words)


def with_demo(options: argparse.Namespace, more: Sequence[str]) -> list[str]:
    """Options for `run_glue.py` where the task is the demo, whose rows and model are made in the output directory."""
    if options.model_name_or_path or options.tasks != [DEMO] or option(more, "dataset_name"):
        raise ValueError("The demo has a model and rows of its own; write --tasks demo, with no other and no model.")
    said = {key: str(value) for key, value in demo.ready(Path(options.output_dir, DEMO)).items()}
    options.model_name_or_path = said.pop("--model_name_or_path")
    if not options.preset:
        options.grid = options.grid or [f"learning_rate={demo.LEARNING_RATE}"]
    if any(option(more, name) for name in BUDGETS):
        del said["--max_steps"]
    return [*more, *(word for key, value in said.items() if not option(more, key[2:]) for word in (key, value))]


def ask(options: argparse.Namespace, more: Sequence[str]) -> Comparison:
    """What the options ask for, checked."""
    if DEMO in options.tasks:
        more = with_demo(options, more)
    if options.model_name_or_path is None:
        raise ValueError("Nothing says which model; add --model_name_or_path bert-base-uncased.")
    if options.search is not None and (options.preset or any("," in axis for axis in options.grid or ())):
        raise ValueError("--search chooses from --space, not from a grid; leave one of them out.")
    check_more(more)
    grid = read_grid(options.grid or ([] if options.preset else ["learning_rate=1e-4"]))
    arms = sweep_arms(options.recipes, options.sweep, more)
    words = (options.model_name_or_path, options.tasks, arms, options.seeds, options.search_seeds, tuple(more), grid)
    asked = Comparison(*words, preset=options.preset)
    asked.check()
    for key in read_space(options.space) if options.search else ():
        check_key(key, [arm.recipe for arm in arms])
    return asked


def compare(asked: Comparison, options: argparse.Namespace, command: str) -> None:
    """Choose, train and keep; whatever is finished is shown, also where something failed."""
    if DEMO in asked.tasks:
        demo.train_start(Path(options.output_dir, DEMO))
    workshop = Workshop(Path(options.output_dir), options.devices, options.keep_models)
    by_search = options.search is not None
    chosen = choose_by_search(asked, workshop, options) if by_search else choose_by_grid(asked, workshop)
    cells = asked.final(chosen)
    Plan(workshop.folder / "plan.json").add(cells, command)
    try:
        workshop.run(cells)
    except CellsFailed:
        if workshop.results.of(cells):
            print(render(workshop.folder))
        raise
    print(render(workshop.folder))


def main(words: list[str] | None = None) -> int:
    options, more = read_options(words)
    try:
        if options.render:
            print(render(Path(options.output_dir)))
        else:
            command = shlex.join(["python", "compare.py", *(sys.argv[1:] if words is None else words)])
            compare(ask(options, more), options, command)
    except ValueError as error:
        raise SystemExit(f"compare.py: {error}") from None
    except KeyboardInterrupt:
        print("\nStopped. What is finished is kept; the same command goes on from there.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
