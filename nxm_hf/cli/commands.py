"""The commands that inspect models, plan trainings and report on them. Each returns its exit code."""

import shutil
from pathlib import Path

from nxm_hf import NxMConfig, analysis, report
from nxm_hf.cli import recipe_guide
from nxm_hf.cli.options import (
    EarlyDirectory,
    ExampleTokens,
    Fraction,
    ModelDirectory,
    OutDirectory,
    PatternText,
    RecipeName,
    RecipeSettings,
    RecordedPatternText,
    RunDirectories,
    RunDirectory,
    Steps,
    TaskRows,
    TrainedDirectory,
)
from nxm_hf.rewinding import rewind
from nxm_hf.storage.inspect import inspect as inspect_model
from nxm_hf.storage.model_files import skeleton
from nxm_hf.storage.verify import verify


def verify_command(dir: ModelDirectory, *, pattern: RecordedPatternText = "") -> int:
    """Check that every layer holds its pattern, with true +0.0 zeros.

    Exits with 0 if every layer passes, 1 if there are problems (each is listed), 2 if the directory cannot be read.
    """
    verification = verify(_existing(dir), pattern or None)
    print(verification)
    return 0 if verification.ok else 1


def inspect_command(dir: ModelDirectory) -> int:
    """Show layers, roles, shapes and density, and the GPU kernels that fit.

    The model may be sparse or dense. Exits with 0, or with 2 if the directory cannot be read.
    """
    print(inspect_model(_existing(dir)))
    return 0


def recipes_command(*, rows: TaskRows = 0, pattern: PatternText = "") -> int:
    """List the recipes, and recommend one to start with.

    The list shows the settings, defaults and paper of each recipe. With --rows or --pattern only the recommendation
    for such a task is printed, with the measurements behind it.
    """
    width = shutil.get_terminal_size().columns
    print(recipe_guide.advice(width, rows, pattern or "2:4") if rows or pattern else recipe_guide.guide(width))
    return 0


def flops_command(
    run_dir: RunDirectory = "",
    *,
    model: ModelDirectory = "",
    recipe: RecipeName = "",
    pattern: PatternText = "",
    steps: Steps = 0,
    settings: RecipeSettings = "",
    warmup: Fraction = 0.0,
    settle: Fraction = 0.0,
    tokens: ExampleTokens = 128,
) -> int:
    """Show what a recipe costs in training FLOPs, before or after it runs.

    Give --model and a recipe to plan a training, or the directory of a finished one to count what it has cost. Exits
    with 0, or with 2 if a directory cannot be read or the recipe does not fit the model.
    """
    if bool(run_dir) == bool(model):
        raise ValueError("Give --model DIR to plan a training, or RUN_DIR, the output_dir of a finished one.")
    if model:
        config = NxMConfig(recipe or "admm", pattern or "2:4", settings, warmup=warmup, settle=settle)
        print(analysis.training_flops(skeleton(_existing(model)), config, steps or 1000, tokens=tokens))
    elif any((recipe, pattern, steps, settings, warmup, settle)):
        raise ValueError(
            f"{run_dir} has its recipe and steps on record; RUN_DIR can be combined with --tokens only. "
            "Leave out the other options."
        )
    else:
        print(report.cost(report.read_run(_existing(run_dir)), tokens))
    return 0


def rewind_command(
    trained: TrainedDirectory, checkpoint: EarlyDirectory, out: OutDirectory, *, pattern: RecordedPatternText = ""
) -> int:
    """Apply the mask of a trained model to its early weights.

    The result is a lottery ticket. Train it with NxMTrainer(model=...) and no sparsity=, which keeps the mask. Exits
    with 0, or with 2 if a directory cannot be read or the two models are not from the same training.
    """
    print(rewind(_existing(trained), _existing(checkpoint), out, pattern or None))
    return 0


def report_command(run_dir: RunDirectories) -> int:
    """Draw training runs or pruned models as one HTML page.

    Writes report.html into the first directory and, if matplotlib is installed, the charts as PNG into its report/.
    The page includes what AnalysisCallback recorded. Exits with 0, or with 2 if a directory cannot be read.
    """
    page, *pictures = report.write_report([_existing(dir) for dir in run_dir])
    print(f"{page}{f' and {len(pictures)} pictures in {pictures[0].parent}' if pictures else ''}")
    return 0


def _existing(dir: str) -> str:
    """Return a path that is a directory; otherwise raise, because Transformers would look for the name on the Hub."""
    if not Path(dir).is_dir():
        problem = "is a file; a directory is needed" if Path(dir).exists() else "does not exist"
        raise FileNotFoundError(f"{dir} {problem}.")
    return dir
