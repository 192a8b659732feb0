"""Notes on a comparison: what its numbers are, and what they cannot say."""

from comparing.measures import PAPER, REPLICATES
from comparing.shapes import Shape
from comparing.study import Part

FEW = 5  # seeds, below which drawing them again says little of other seeds
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
SIMILARITY = "Mask similarity is the mean of what was logged before the mask was frozen: from one refresh to the next."
SMALL = "f is the share of the way from `small`, a dense model of as many weights, up to `dense`; 1 is dense."


def notes(part: Part) -> list[str]:
    """What to know of the tables of a part."""
    told = [DIFFERENCES, GAP, FLOPS, SIMILARITY]
    if any(runs.recipe == "small" for runs in part.runs):
        told.append(SMALL)
    if Shape.of(part.model, part.tasks[0], part.more).trouble:
        told.append(f"The config of {part.model} cannot be read here, so FLOPs and numbers of masks are left out.")
    if gone := [task for task in part.tasks if part.truth(task) is None]:
        told.append(f"The files of predictions of {', '.join(gone)} are gone, so intervals there are over seeds alone.")
    return ["\n".join(f"- {note}" for note in told)]


def of_seeds(part: Part, task: str) -> list[str]:
    """What so few seeds can say."""
    fewest = min(len(runs.records) for runs in part.of(task))
    if fewest == 1:
        return [
            "With one seed there is no ±, and an interval is over validation rows alone: other seeds may do otherwise."
        ]
    if fewest < FEW:
        return [f"With {fewest} seeds the ± is rough, and intervals tend to be too narrow."]
    return []


def on_the_average(part: Part) -> list[str]:
    """Which numbers are in the geometric mean."""
    theirs, left = ([task for task in part.tasks if (task in PAPER) is wanted] for wanted in (True, False))
    count = len(theirs) + ("mnli" in theirs)
    return [
        f"The geometric mean is of {count} of the 8 numbers of NxMTransformer's average, times 100: the task's metric, "
        "but Spearman's correlation on STS-B, and on MNLI both splits."
        + (f" It leaves out {', '.join(left)}." if left else "")
    ]
