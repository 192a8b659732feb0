"""The commands that inspect models, plan trainings and report on them. Each returns its exit code."""

import json
import shutil
from typing import Any, Protocol

from nxm_hf.cli import recipe_guide
from nxm_hf.cli.options import (
    AdvicePattern,
    AsJson,
    AsSummary,
    DemoDirectory,
    DemoRecipe,
    DemoSeed,
    DemoSteps,
    EarlyDirectory,
    Fraction,
    Model,
    OutDirectory,
    PageDirectory,
    Pattern,
    PlannedModel,
    PlannedPattern,
    Recipe,
    RecipeSettings,
    RecordedPattern,
    RunDirectories,
    RunDirectory,
    Steps,
    TaskRows,
    Tokens,
    TrainedDirectory,
)
from nxm_hf.text import printable


class Shown(Protocol):
    """Something that a command prints, as text or as JSON."""

    def to_dict(self) -> dict[str, Any]:
        """Return the same as a dict that JSON can hold."""


def show(result: Shown, as_json: bool) -> None:
    """Print a result.

    Args:
        result: The result.
        as_json: Whether to print JSON instead of text.
    """
    print(json.dumps(result.to_dict(), indent=2) if as_json else printable(str(result)))


def verify_command(
    model: Model, pattern: RecordedPattern = None, summary: AsSummary = False, as_json: AsJson = False
) -> int:
    """Check that every layer holds its pattern, with true +0.0 zeros.

    Exits with 0 if every layer passes, 1 if there are problems (each is listed), 2 if the model cannot be read.
    """
    from nxm_hf.storage.model_source import model_directory
    from nxm_hf.storage.verify import verify

    verification = verify(model_directory(model), pattern)
    show(verification.summary() if summary else verification, as_json)
    return 0 if verification.ok else 1


def inspect_command(model: Model, as_json: AsJson = False) -> int:
    """Show layers, roles, shapes and density, and the GPU kernels that fit.

    The model may be sparse or dense. Exits with 0, or with 2 if the model cannot be read.
    """
    from nxm_hf.storage.inspect import inspect
    from nxm_hf.storage.model_source import model_directory

    show(inspect(model_directory(model)), as_json)
    return 0


def recipes_command(rows: TaskRows = None, pattern: AdvicePattern = None, as_json: AsJson = False) -> int:
    """List the recipes, and recommend one to start with.

    The list shows the settings, defaults and paper of each recipe. With --rows or --pattern only the recommendation
    for such a task is printed, with the measurements behind it.
    """
    width = shutil.get_terminal_size().columns
    if as_json:
        print(json.dumps(recipe_guide.as_dict(pattern or "2:4"), indent=2))
    elif rows is None and pattern is None:
        print(recipe_guide.guide(width))
    else:
        print(recipe_guide.advice(width, rows, pattern or "2:4"))
    return 0


def flops_command(
    run_dir: RunDirectory = None,
    model: PlannedModel = None,
    recipe: Recipe = None,
    pattern: PlannedPattern = None,
    steps: Steps = None,
    settings: RecipeSettings = None,
    warmup: Fraction = 0.0,
    settle: Fraction = 0.0,
    tokens: Tokens = 128,
    as_json: AsJson = False,
) -> int:
    """Show what a recipe costs in training FLOPs, before or after it runs.

    Give --model and a recipe to plan a training, or the directory of a finished one to count what it has cost. Exits
    with 0, or with 2 if a directory cannot be read or the recipe does not fit the model.
    """
    if bool(run_dir) == bool(model):
        raise ValueError("Give --model MODEL to plan a training, or RUN_DIR, the output_dir of a finished one.")
    if run_dir and any((recipe, pattern, steps, settings, warmup, settle)):
        raise ValueError(
            f"{run_dir} has its recipe and steps on record; RUN_DIR can be combined with --tokens only. "
            "Leave out the other options."
        )
    from nxm_hf import NxMConfig, analysis, report
    from nxm_hf.storage.model_files import skeleton
    from nxm_hf.storage.model_source import existing_directory, model_directory

    if run_dir:
        show(report.cost(report.read_run(existing_directory(run_dir)), tokens), as_json)
    elif model:
        config = NxMConfig(recipe or "admm", pattern or "2:4", settings, warmup=warmup, settle=settle)
        plan = skeleton(model_directory(model))
        show(analysis.training_flops(plan, config, 1000 if steps is None else steps, tokens=tokens), as_json)
    return 0


def rewind_command(
    trained: TrainedDirectory, checkpoint: EarlyDirectory, out: OutDirectory, pattern: RecordedPattern = None
) -> int:
    """Apply the mask of a trained model to its early weights.

    The result is a lottery ticket. Train it with NxMTrainer(model=...) and no sparsity=, which keeps the mask. Exits
    with 0, or with 2 if a directory cannot be read or the two models are not from the same training.
    """
    from nxm_hf.rewinding import rewind
    from nxm_hf.storage.model_source import existing_directory

    print(rewind(existing_directory(trained), existing_directory(checkpoint), out, pattern))
    return 0


def report_command(run_dir: RunDirectories, out: PageDirectory = None) -> int:
    """Draw training runs or pruned models as one HTML page.

    Writes report.html into the first directory, or into the one that --out names, and the charts as PNG into its
    report/ if matplotlib is installed. The page includes what AnalysisCallback recorded. Exits with 0, or with 2 if a
    directory cannot be read.
    """
    from nxm_hf import report
    from nxm_hf.storage.model_source import existing_directory

    page, *pictures = report.write_report([existing_directory(dir) for dir in run_dir], out)
    print(f"{page}{f' and {len(pictures)} pictures in {pictures[0].parent}' if pictures else ''}")
    return 0


def demo_command(
    out: DemoDirectory = "nxm-demo",
    recipe: DemoRecipe = "admm",
    pattern: Pattern = "2:4",
    steps: DemoSteps = 800,
    seed: DemoSeed = 42,
) -> int:
    """Fine-tune a small BERT dense and sparse, on made-up sentences.

    Takes about a minute on two CPU cores, without a network. Prints a table of before and after, saves the sparse
    model into OUT and verifies it. Exits with 0, or with 1 if the model does not hold its pattern.
    """
    from nxm_hf.config import NxMConfig
    from nxm_hf.config.values import parse_json
    from nxm_hf.demo import run_demo

    if steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1; got {steps}. Write --steps 800.")
    return 0 if run_demo(out, NxMConfig(recipe, parse_json("pattern", pattern)), steps, seed).ok else 1
