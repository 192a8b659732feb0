"""Custom training loops: `attach` makes them sparse with one call."""

from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from nxm_hf.config import NxMConfig
from nxm_hf.engine.engine import Engine
from nxm_hf.engine.optimizer_state import unwrapped
from nxm_hf.engine.step_hooks import hooks_of
from nxm_hf.layers.plan import Plan
from nxm_hf.methods import Method


def attach(
    model: nn.Module,
    optimizer: Optimizer,
    sparsity: NxMConfig | str | Path | dict[str, Any] | Method,
    total_steps: int,
    steps_per_epoch: int | None = None,
    seed: int = 0,
) -> Engine:
    """Make a custom training loop sparse. After it, call `optimizer.step()` as usual.

    Args:
        model: The model to prune.
        optimizer: Its optimizer; accelerate's wrapper is accepted.
        sparsity: An `NxMConfig`, the name of a recipe such as "admm", a pattern such as "2:4", a dict, JSON, or the
            path of a JSON or YAML file.
        total_steps: Number of optimizer steps of the whole training.
        steps_per_epoch: Number of optimizer steps per epoch, for settings such as `steps="epoch"`.
        seed: Seed of recipes that draw random numbers.

    Returns:
        The engine. Call its `finish()` after the last step; see `Engine` for evaluation, checkpoints and metrics.

    Raises:
        ValueError: If the model, the optimizer or the recipe cannot be trained so.

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
    if type(total_steps) is not int or total_steps < 1:
        raise ValueError(
            f"total_steps must be a whole number of at least 1; got {total_steps!r}. "
            "Write total_steps=epochs * len(dataloader), divided by the steps of gradient accumulation."
        )
    config = NxMConfig.from_any(sparsity)
    return Engine(Plan.of(model, config), unwrapped(optimizer), config, total_steps, steps_per_epoch, seed)


def engine_of(optimizer: Optimizer) -> Engine | None:
    """Return the engine that is attached to an optimizer.

    Args:
        optimizer: The optimizer; accelerate's wrapper is accepted.

    Returns:
        The engine, or None if there is none.
    """
    hooks = hooks_of(unwrapped(optimizer))
    return hooks.handler if hooks is not None and isinstance(hooks.handler, Engine) else None
