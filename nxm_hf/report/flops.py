"""The FLOPs of a finished training, and of the same training if it were dense."""

from dataclasses import dataclass
from typing import Any

from nxm_hf.analysis import TrainingFlops, training_flops
from nxm_hf.config.config import NxMConfig
from nxm_hf.report.run import Run
from nxm_hf.storage.model_files import skeleton


@dataclass(frozen=True)
class Cost:
    """The FLOPs of the steps that a training has done; prints as a table.

    Args:
        flops: The FLOPs by our count, for one example in each step.
        steps: Optimizer steps done.
        planned: Optimizer steps of the whole training.
        counted: The Trainer's own count of the FLOPs of dense training; 0 if it has none.
    """

    flops: TrainingFlops
    steps: int
    planned: int
    counted: float

    @property
    def spent(self) -> float:
        """Return the Trainer's count, reduced by the share that sparsity saves."""
        return self.counted * self.flops.overall

    def to_dict(self) -> dict[str, Any]:
        """Return the account as a dict that JSON can hold."""
        done = {"steps": self.steps, "planned": self.planned, "counted": self.counted, "spent": self.spent}
        return {**self.flops.to_dict(), **done}

    def __str__(self) -> str:
        lines = [f"{self.steps} of {self.planned} steps were done."]
        if self.counted:
            lines.append(f"The Trainer counted {self.counted:.4g} FLOPs, dense; by this account, {self.spent:.4g}.")
        return f"{self.flops}\n\n{' '.join(lines)}"


def cost(run: Run, tokens: int = 128) -> Cost:
    """Compute the FLOPs of a training from the files of its run.

    Args:
        run: A run that saved a model.
        tokens: The length of the example on which FLOPs are counted.

    Raises:
        ValueError: if the run has no recipe, no model or no steps on record.
        OSError: if its model cannot be read.
    """
    recipe, planned = run.config.get("recipe"), run.state.get("max_steps", 0)
    if recipe is None:
        raise ValueError(f"{run.name} has no record of a recipe: every product was dense.")
    if recipe == "custom":
        raise ValueError(f"{run.name} was trained by a method of its own, whose schedule is not known.")
    if run.model is None:
        raise ValueError(f"{run.name} holds no model, so the FLOPs of its layers cannot be counted.")
    if not 0 < run.steps <= planned:
        raise ValueError(f"{run.name} has done {run.steps} of {planned} steps; the FLOPs of that cannot be counted.")
    model, config = skeleton(run.model), NxMConfig.from_dict(run.config)
    flops = training_flops(model, config, planned, tokens=tokens, done=run.steps)
    return Cost(flops, run.steps, planned, float(run.state.get("total_flos") or 0))
