"""Custom training loops: `attach` makes them sparse with one call."""

import gc
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from nxm_hf.config import NxMConfig
from nxm_hf.config.misplaced import refuse_misplaced
from nxm_hf.engine.engine import Engine
from nxm_hf.engine.optimizer_state import unwrapped
from nxm_hf.engine.step_hooks import attached_handlers, hooks_of
from nxm_hf.layers.plan import Plan
from nxm_hf.methods import Method
from nxm_hf.text import shortened


def attach(
    model: nn.Module,
    optimizer: Optimizer,
    sparsity: NxMConfig | str | Path | dict[str, Any] | Method,
    total_steps: int,
    steps_per_epoch: int | None = None,
    seed: int = 0,
    **unknown: Any,
) -> Engine:
    """Make a custom training loop sparse. After it, call `optimizer.step()` as usual.

    Args:
        model: The model to prune.
        optimizer: Its optimizer; accelerate's wrapper is accepted.
        sparsity: An `NxMConfig`, or what makes one. It can be the name of a recipe such as "admm", a pattern such as
            "2:4", a dict, JSON, or the path of a file.
        total_steps: Number of optimizer steps of the whole training.
        steps_per_epoch: Number of optimizer steps per epoch, for settings such as `steps="epoch"`.
        seed: Seed of recipes that draw random numbers.
        **unknown: No argument has another name. One that is given raises a TypeError that says what to write.

    Returns:
        The engine. Call its `finish()` after the last step; see `Engine` for evaluation, checkpoints and metrics.

    Raises:
        ValueError: If the model, the optimizer or the recipe is not supported. The message says what to write.
        TypeError: If an argument has the wrong type or an unknown name.

    Example:
        >>> import torch
        >>> layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        >>> model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> engine = attach(model, optimizer, "ste", total_steps=1)
        >>> model(torch.ones(1, 3, 16)).sum().backward()
        >>> optimizer.step()
        >>> engine.finish()
    """
    has = "model, optimizer, sparsity, total_steps, steps_per_epoch and seed"
    form = f"attach(model, optimizer, {{}}, total_steps={total_steps!r})"
    refuse_misplaced("attach", unknown, sparsity, has, form)
    if type(total_steps) is not int or total_steps < 1:
        raise ValueError(
            f"total_steps must be a whole number of at least 1; got {total_steps!r}. "
            "Write total_steps=epochs * len(dataloader), divided by the steps of gradient accumulation."
        )
    if not isinstance(unwrapped(optimizer), Optimizer):
        raise TypeError(
            f"attach takes a model, then an optimizer; got {type(optimizer).__name__} as the optimizer. Write "
            "attach(model, torch.optim.AdamW(model.parameters()), ...)."
        )
    config = NxMConfig.from_any(sparsity)
    plan = Plan.of(model, config)
    if engine_of(optimizer) is None:  # the engine refuses an optimizer that has another
        _check_alone(plan)
    return Engine(plan, unwrapped(optimizer), config, total_steps, steps_per_epoch, seed)


def engine_of(optimizer: Optimizer) -> Engine | None:
    """Return the engine that is attached to an optimizer.

    Args:
        optimizer: The optimizer; accelerate's wrapper is accepted.

    Returns:
        The engine, or None if there is none.
    """
    hooks = hooks_of(unwrapped(optimizer))
    return hooks.handler if hooks is not None and isinstance(hooks.handler, Engine) else None


def engines_on(plan: Plan) -> list[Engine]:
    """Return the engines that are attached to an optimizer and train any layer of a plan.

    Args:
        plan: The layers.
    """
    weights = {id(target.layer.weight) for target in plan.targets}
    engines = [handler for handler in attached_handlers() if isinstance(handler, Engine)]
    return [each for each in engines if any(id(target.layer.weight) in weights for target in each.plan.targets)]


def _check_alone(plan: Plan) -> None:
    """Raise if a layer of a plan is in the hands of an engine that the program still holds."""
    if engines_on(plan):
        gc.collect()  # engine and optimizer refer to each other, so an unreachable engine may not be collected yet
    if others := engines_on(plan):
        held = {id(target.layer.weight) for target in others[0].plan.targets}
        names = [target.name for target in plan.targets if id(target.layer.weight) in held]
        raise ValueError(
            f"Another engine trains {len(names)} of these layers with another optimizer: {shortened(names)}. Call its "
            "finish() first, or its release() to put back the weights that were trained."
        )
