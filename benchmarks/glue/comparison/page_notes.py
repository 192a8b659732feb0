"""Notes on the page: the meaning of its numbers, and their limits."""

from nxm_hf.text import markdown_text

from .model_shapes import Shape
from .results import ModelResults
from .statistics import PAPER_TASKS, REPLICATES

FEW_SEEDS = 5  # with fewer seeds, drawing them with replacement says little about other seeds
DIFFERENCES = (
    "Differences are paired: the same seeds and the same rows. "
    f"Brackets hold the 95 % interval of {REPLICATES} replicates. "
    "Each draws seeds and validation rows with replacement, and all runs share the drawn rows."
)
GAP = (
    "Gap closed: 0 % is `asp` of the same pattern, and 100 % is `dense`. It is missing if `dense` is not above `asp`, "
    "or if one of them was not run. '?' means that the interval of the gap between them reaches 0."
)
FLOPS = (
    "Training FLOPs are relative to dense training with the task's largest budget, as `nxm_hf.analysis` counts them. A "
    "layer has three products in each step. The forward product counts by its density if the weight holds the pattern. "
    "Nothing here ran on hardware that makes use of sparsity. The training and the outputs of a teacher are included."
)
SIMILARITY = (
    "Mask similarity compares masks from one refresh to the next. It is the mean of the values that were logged before "
    "the mask was frozen. With ADMM each iteration counts once, from the second one on."
)
SMALL = "f is the share of the way from `small`, a dense model with as many weights, up to `dense`; 1 is `dense`."


def notes(results: ModelResults) -> list[str]:
    """Return the notes on all tables of a model.

    Args:
        results: The results of the model.
    """
    lines = [DIFFERENCES, GAP, FLOPS, SIMILARITY]
    if any(runs.recipe == "small" for runs in results.runs):
        lines.append(SMALL)
    if Shape.from_options(results.model, results.tasks[0], results.more).error:
        model = markdown_text(results.model)
        lines.append(f"The config of {model} cannot be read here, so FLOPs and numbers of masks are left out.")
    if missing := [task for task in results.tasks if results.truth(task) is None]:
        tasks = ", ".join(missing)
        lines.append(f"The prediction files of {tasks} are missing, so intervals there are over seeds alone.")
    return ["\n".join(f"- {line}" for line in lines)]


def note_on_seeds(results: ModelResults, task: str) -> list[str]:
    """Return a warning about few seeds; empty if there are enough.

    Args:
        results: The results of a model.
        task: The task.
    """
    fewest = min(len(runs.records) for runs in results.of(task))
    if fewest == 1:
        return [
            "With one seed there is no ±. An interval is over validation rows alone, and other seeds may differ more."
        ]
    if fewest < FEW_SEEDS:
        return [f"With {fewest} seeds the ± is rough, and intervals tend to be too narrow."]
    return []


def note_on_average(results: ModelResults) -> list[str]:
    """Return a note that names the numbers in the geometric mean.

    Args:
        results: The results of a model.
    """
    included = [task for task in results.tasks if task in PAPER_TASKS]
    excluded = [task for task in results.tasks if task not in PAPER_TASKS]
    count = len(included) + ("mnli" in included)
    return [
        f"The geometric mean is of {count} of the 8 numbers in NxMTransformer's average, times 100. These are the "
        "metrics of the tasks: on STS-B Spearman's correlation, and on MNLI both splits."
        + (f" It leaves out {', '.join(excluded)}." if excluded else "")
    ]
