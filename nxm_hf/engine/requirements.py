"""Checks of a model, an optimizer and a config before a training starts."""

from collections.abc import Callable

import torch

from nxm_hf.config.config import NxMConfig
from nxm_hf.layers.plan import Plan, _some, holds_pattern


def check_trainable(plan: Plan) -> None:
    """Raise unless every target can be trained, in a precision that small edits survive."""
    layers = [target.layer for target in plan.targets]
    _refuse(
        [layer.name for layer in layers if layer.weight.dtype in (torch.bfloat16, torch.float16)],
        "hold half-precision weights, in which small pulls and shrinks round to nothing. Load the model with "
        "dtype=torch.float32 and train with bf16=True (autocast).",
    )
    _refuse(
        [layer.name for layer in layers if not layer.weight.requires_grad],
        "are frozen (requires_grad=False), so training cannot make up for what is pruned. Unfreeze them, or leave "
        "them out with exclude=[...].",
    )
    _refuse(
        [layer.name for layer in layers if layer.weight.isnan().any()],
        "hold NaN, of which no mask can be made. Load the model from a checkpoint before it diverged.",
    )


def check_held(plan: Plan, optimizer: torch.optim.Optimizer) -> None:
    """Raise unless the optimizer trains every target."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    _refuse(
        [target.name for target in plan.targets if id(target.layer.weight) not in held],
        "are not held by the optimizer. Make it from model.parameters(), or leave them out with exclude=[...].",
    )


def check_pruned(plan: Plan, config: NxMConfig, prune: Callable[[], None] | None) -> None:
    """Raise unless a recipe that trains what a method of `prune` has made sparse has such a model, or can `prune`."""
    by = config.calibrated_start
    if prune is not None or by is None or not by.required:
        return
    if by.phase == "settle":
        raise ValueError(
            f"{config.recipe} with {config.settings} has {by.method} look at training data in the middle, as a Trainer "
            'does; a loop of your own has none to show it. Write scores="fisher", which needs none.'
        )
    if config.warmup or not holds_pattern(plan):
        warm = f" after a warmup of {config.warmup}" if config.warmup else ""
        raise ValueError(
            f"{config.recipe} with {config.settings} trains what {by.method} has pruned{warm}, and this model does not "
            f"hold {config.pattern!r} by then. A Trainer prunes it from its training data; in a loop of your own call "
            f'nxm_hf.prune(model, {config.pattern!r}, "{by.method}", calibration) before attach(...) without a warmup, '
            "or load the weights that a training saved."
        )


def _refuse(names: list[str], what: str) -> None:
    if names:
        raise ValueError(f"{len(names)} layers that are to be pruned {what} They are: {_some(names)}.")
