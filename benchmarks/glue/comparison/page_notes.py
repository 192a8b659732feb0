"""Notes on the page: what its numbers are, and what they cannot show."""

from nxm_hf.text import markdown_text

from .model_shapes import Shape
from .results import ModelResults
from .statistics import PAPER_TASKS, REPLICATES

FEW_SEEDS = 5  # below that, seeds drawn with replacement say little of other seeds
DIFFERENCES = (
    "Differences are paired: the same seeds, the same rows. In brackets is the 95 % interval of "
    f"{REPLICATES} replicates that draw seeds and validation rows with replacement; all runs share the rows drawn."
)
GAP = (
    "Gap closed: 0 % is `asp` of the same pattern, 100 % is `dense`. There is none where `dense` is not above `asp`, "
    "or one of them was not run; '?' says that the interval of the gap itself reaches 0."
)
FLOPS = (
    "Training FLOPs are over those of dense training with the task's largest budget, by `nxm_hf.analysis`: a layer "
    "counts three products in a step, of which the forward one counts the density where the weight holds the pattern. "
    "Nothing here ran on hardware that makes use of it. A teacher's training and answers are counted in."
)
SIMILARITY = (
    "Mask similarity is the mean of what was logged before the mask was frozen: from one refresh to the next. Of ADMM "
    "each iteration counts once, from the second on."
)
SMALL = "f is the share of the way from `small`, a dense model of as many weights, up to `dense`; 1 is dense."


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
        lines.append(f"The files of predictions of {tasks} are gone, so intervals there are over seeds alone.")
    return ["\n".join(f"- {line}" for line in lines)]


def note_on_seeds(results: ModelResults, task: str) -> list[str]:
    """Return a note on how little few seeds show; empty if there are enough.

    Args:
        results: The results of a model.
        task: The task.
    """
    fewest = min(len(runs.records) for runs in results.of(task))
    if fewest == 1:
        return [
            "With one seed there is no ±, and an interval is over validation rows alone: other seeds may do otherwise."
        ]
    if fewest < FEW_SEEDS:
        return [f"With {fewest} seeds the ± is rough, and intervals tend to be too narrow."]
    return []


def note_on_average(results: ModelResults) -> list[str]:
    """Return a note on which numbers the geometric mean is of.

    Args:
        results: The results of a model.
    """
    included = [task for task in results.tasks if task in PAPER_TASKS]
    excluded = [task for task in results.tasks if task not in PAPER_TASKS]
    count = len(included) + ("mnli" in included)
    return [
        f"The geometric mean is of {count} of the 8 numbers of NxMTransformer's average, times 100: the task's metric, "
        "but Spearman's correlation on STS-B, and on MNLI both splits."
        + (f" It leaves out {', '.join(excluded)}." if excluded else "")
    ]
