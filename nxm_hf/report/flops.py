"""Costs: what a training that is over has cost in FLOPs, as it was and had it been dense."""

from dataclasses import dataclass

from nxm_hf.analysis import TrainingFlops, training_flops
from nxm_hf.config.config import NxMConfig
from nxm_hf.report.run import Run
from nxm_hf.storage.model_files import skeleton


@dataclass(frozen=True)
class Cost:
    """The account of the steps that were done. `counted` is the Trainer's own count of a dense training's FLOPs."""

    flops: TrainingFlops
    steps: int
    planned: int
    counted: float

    @property
    def spent(self) -> float:
        """The Trainer's count, less what the account saves."""
        return self.counted * self.flops.overall

    def __str__(self) -> str:
        lines = [f"{self.steps} of {self.planned} steps were done."]
        if self.counted:
            lines.append(f"The Trainer counted {self.counted:.4g} FLOPs, dense; by this account, {self.spent:.4g}.")
        return f"{self.flops}\n\n{' '.join(lines)}"


def cost(run: Run, tokens: int = 128) -> Cost:
    """Work out from the files of a run what its recipe has cost; a ValueError says why that is not known."""
    recipe, planned = run.config.get("recipe"), run.state.get("max_steps", 0)
    if recipe is None:
        raise ValueError(f"{run.name} has no record of a recipe: every product was dense.")
    if recipe == "custom":
        raise ValueError(f"{run.name} was trained by a method of its own, whose schedule is not known.")
    if run.model is None:
        raise ValueError(f"{run.name} holds no model to count the products of.")
    if not 0 < run.steps <= planned:
        raise ValueError(f"{run.name} has done {run.steps} of {planned} steps, which is no training to count.")
    model, config = skeleton(run.model), NxMConfig.from_dict(run.config)
    flops = training_flops(model, config, planned, tokens=tokens, done=run.steps)
    return Cost(flops, run.steps, planned, float(run.state.get("total_flos") or 0))
