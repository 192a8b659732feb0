r"""Compare recipes on GLUE: recipes × seeds × a grid, on equal data, order and budget.

    python compare.py --model_name_or_path bert-base-uncased --tasks mrpc cola \
        --recipes dense asp sr-ste "admm settle=0.3" --seeds 0 1 2 --grid learning_rate=3e-5,1e-4,3e-4 \
        --output_dir out/compare --num_train_epochs 4

A recipe is written with what differs from its defaults: `"mask-decay grad=ste pattern=4:8"`. Every point of the grid is
tried on a tenth of the training rows held out. The best one is then trained on all of them with each seed, and only
these models see the validation rows. Options that are not named here go to `run_glue.py` as they are.

A comparison that was stopped or killed goes on when the same command is typed again. `--tasks demo` needs neither
network nor data: its model and rows are made in the output directory.

At the end it writes `comparison.md`, with tables, intervals and plots, into the output directory. `--render` does only
that.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from .example_scripts import TASKS, demo, language_model
from .options import BUDGETS, check_options, option_value
from .page import PAGE, render
from .presets import PRESETS, Preset, describe_presets, read_preset
from .recipe_text import check_key
from .records import Plan
from .request import Choice, ComparisonRequest, choose_by_grid, choose_by_search
from .runner import Runner, TrialsFailed
from .search import Search, read_space
from .variants import SWEEPS, read_grid, sweep_variants

DEMO = "demo"
TASK, RECIPES, SEEDS = ("mrpc",), ("dense", "asp", "admm"), (0, 1, 2)  # without a preset that names others
PRESET_HELP = """A preset is a file of the folder `presets`. It names models, tasks, recipes, seeds and a grid; what is
written on the command line replaces it. nxmtransformer is Table 3 of the paper. CoLA, STS-B, MRPC, RTE (and WNLI):
learning rates 5e-5, 7e-5, 9e-5, 1e-4, rho 3e-3, 6e-3, 1e-2, 10 epochs. MNLI, QNLI, SST-2 (and QQP): 1e-5, 3e-5, 5e-5,
rho 4e-4, 1e-3, 3e-3, 5 epochs. Batches of 16 and 32 everywhere; rho for recipes that have it; dense and asp with the
paper's rates for them. The paper took the best result on the validation rows; here it is chosen on rows held out.
bert-glue is that on four encoders and eight tasks. squad is exact match and F1, by examples/question_answering.py.
opt-wikitext is perplexity, by benchmarks/language_model.py, whose
options can be added."""


def parse_arguments(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of this command, and those for `run_glue.py`.

    Args:
        arguments: The command line; None is that of the process.
    """
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], epilog=PRESET_HELP, allow_abbrev=False
    )
    add = parser.add_argument
    add("--model", "--model_name_or_path", nargs="+", dest="models", help="Hub models, or directories")
    add("--tasks", nargs="+", choices=[*TASKS], metavar="TASK", help=f"{', '.join(TASKS)} (default: mrpc)")
    add(
        "--recipes",
        nargs="+",
        help="dense asp admm by default; with other settings: 'admm settle=0.3'; with 'teacher=dense' it "
        "learns from the dense training of its seed; 'small' is a narrower dense model of as many weights, for "
        "models trained from scratch",
    )
    add("--seeds", nargs="+", type=int, help="0 1 2 by default")
    add("--grid", nargs="+", help="key=a,b,c of run_glue.py or of recipes (default: learning_rate=1e-4)")
    add("--preset", choices=[*PRESETS], help=describe_presets())
    add("--search", type=int, metavar="N", help="try N points with Optuna for each task and recipe")
    add("--space", nargs="+", default=["learning_rate=1e-5:1e-3:log"], help="key=low:high[:log|:int] or a,b")
    add("--storage", help="URL of the searches, to share between machines (default: sqlite in output_dir)")
    add("--search_seeds", nargs="+", type=int, default=[0], help="seeds that each point is tried with")
    add("--sweep", nargs="+", default=[], metavar="NAME[=a,b]", help=f"one of {', '.join(SWEEPS)}")
    add("--devices", nargs="+", default=[""], help="CUDA devices, or '' '' for two processes")
    add("--keep_models", action="store_true", help="keep the weights of every trial")
    add("--render", action="store_true", help=f"only write {PAGE} from what is finished")
    add("--output_dir", default="out/compare")
    options, more = parser.parse_known_args(arguments)
    preset = read_preset(options.preset) if options.preset else Preset("")
    options.script = preset.script
    options.models = options.models or [*preset.models]
    options.tasks = options.tasks or [*(preset.tasks or TASK)]
    options.recipes = options.recipes or [*(preset.recipes or RECIPES)]
    options.seeds = options.seeds or [*(preset.seeds or SEEDS)]
    return options, more


def with_demo(options: argparse.Namespace, more: Sequence[str]) -> list[str]:
    """Return the options for `run_glue.py` with those of the demo, whose rows and shapes are made in the output folder.

    Args:
        options: The options of this command; the demo sets its model and grid.
        more: The options for `run_glue.py`, which go before those of the demo.

    Raises:
        ValueError: Another task, a model or a data set is named too.
    """
    if options.models or options.tasks != [DEMO] or option_value(more, "dataset_name"):
        raise ValueError("The demo has a model and rows of its own; write --tasks demo, with no other and no model.")
    defaults = {key: str(value) for key, value in demo.prepare(Path(options.output_dir, DEMO)).items()}
    options.models = [defaults.pop("--model_name_or_path")]
    if not options.preset:
        options.grid = options.grid or [f"learning_rate={demo.LEARNING_RATE}"]
    if any(option_value(more, name) for name in BUDGETS):
        del defaults["--max_steps"]
    missing = {key: value for key, value in defaults.items() if not option_value(more, key.removeprefix("--"))}
    return [*more, *demo.command_line(missing)]


def make_requests(options: argparse.Namespace, more: Sequence[str]) -> list[ComparisonRequest]:
    """Check the options, and return a comparison for each model.

    Args:
        options: The options of this command.
        more: The options for `run_glue.py`.

    Raises:
        ValueError: An option is missing or not valid.
    """
    if DEMO in options.tasks:
        more = with_demo(options, more)
    if not options.models:
        raise ValueError("No model is named; add --model bert-base-uncased.")
    if options.search is not None and (options.preset or any("," in axis for axis in options.grid or ())):
        raise ValueError("--search chooses from --space, not from a grid; leave one of them out.")
    check_options(more)
    variants = sweep_variants(options.recipes, options.sweep, more)
    requests = [
        ComparisonRequest(
            model=model,
            tasks=options.tasks,
            variants=variants,
            seeds=options.seeds,
            search_seeds=options.search_seeds,
            more=tuple(more),
            grid=read_grid(options.grid or ([] if options.preset else ["learning_rate=1e-4"])),
            preset=options.preset,
        )
        for model in options.models
    ]
    for request in requests:
        request.check()
    for key in read_space(options.space) if options.search else ():
        check_key(key, [variant.recipe for variant in variants])
    return requests


def choose(request: ComparisonRequest, runner: Runner, options: argparse.Namespace) -> Choice:
    """Return the settings of each variant on each task.

    Args:
        request: The comparison.
        runner: Runs the trials.
        options: The options of this command.
    """
    if options.search is None:
        return choose_by_grid(request, runner)
    storage = options.storage or f"sqlite:///{runner.folder / 'search.db'}"
    search = Search(runner, read_space(options.space), options.search, request.search_seeds, storage)
    return choose_by_search(request, search)


def compare(requests: Sequence[ComparisonRequest], options: argparse.Namespace, command: str) -> None:
    """Choose settings, run all trials and print the page.

    Args:
        requests: A comparison for each model.
        options: The options of this command.
        command: The command line, which the page shows.

    Raises:
        TrialsFailed: A trial failed; all others are run, and the page of them is written first.
    """
    if DEMO in options.tasks:
        demo.train_start(Path(options.output_dir, DEMO))
    runner = Runner(Path(options.output_dir), options.devices, options.keep_models)
    failures = []
    for request in requests:
        try:
            trials = request.compared_trials(choose(request, runner, options))
            Plan(runner.folder / "plan.json").add(trials, command)
            runner.run(trials)
        except TrialsFailed as failure:
            failures.append(failure)
    if not failures or any(not record["hold_out"] for record in runner.records.records.values()):
        print(render(runner.folder))
    if failures:
        raise TrialsFailed(" ".join(str(failure) for failure in failures))


def compare_language_models(options: argparse.Namespace, more: Sequence[str]) -> None:
    """Run benchmarks/language_model.py for each model, with the options of a preset.

    Args:
        options: The options of this command.
        more: Options of that script, which replace those of the preset.

    Raises:
        ValueError: An option has no meaning there.
    """
    meant = {"tasks": [*TASK], "grid": None, "search": None, "sweep": [], "devices": [""], "keep_models": False}
    if useless := [f"--{name}" for name, default in meant.items() if getattr(options, name) != default]:
        raise ValueError(f"{', '.join(useless)} cannot be used with --preset {options.preset}; leave it out.")
    for number, model in enumerate(options.models):
        words = language_model_words(options, more, model)
        print(f"\n## {model}" if number else f"## {model}", flush=True)
        language_model().main(words)


def language_model_words(options: argparse.Namespace, more: Sequence[str], model: str) -> list[str]:
    """Return the command line of benchmarks/language_model.py for a model, with a separate folder.

    Args:
        options: The options of this command.
        more: Options of that script, which replace those of the preset.
        model: The model.
    """
    words = [*more, "--model", model, "--output-dir", str(Path(options.output_dir, Path(model).name))]
    for name, values in read_preset(options.preset).options.items():
        if option_value(more, name.replace("-", "_")) is None:
            words += [f"--{name}", *values]
    words += ["--recipes", *options.recipes, "--seeds", *map(str, options.seeds)]
    return [*words, "--render"] if options.render else words


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The command line; None is that of the process.

    Returns:
        The exit code.

    Raises:
        SystemExit: An option is not valid, or a trial failed.
    """
    options, more = parse_arguments(arguments)
    try:
        if options.script:
            compare_language_models(options, more)
        elif options.render:
            print(render(Path(options.output_dir)))
        else:
            words = sys.argv[1:] if arguments is None else arguments
            compare(make_requests(options, more), options, shlex.join(["python", "compare.py", *words]))
    except ValueError as error:
        raise SystemExit(f"compare.py: {error}") from None
    except KeyboardInterrupt:
        print("\nStopped. What is finished is kept; the same command goes on from there.", file=sys.stderr)
        return 130
    return 0
