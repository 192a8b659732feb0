"""Plain training loops: one call makes them sparse."""

import torch
from torch import nn

from nxm_hf.config.config import NxMConfig
from nxm_hf.engine.engine import Engine
from nxm_hf.engine.optimizer_state import unwrapped
from nxm_hf.engine.step_hooks import bracket_of


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    sparsity: NxMConfig | str | dict,
    total_steps: int,
    steps_per_epoch: int | None = None,
    seed: int = 0,
) -> Engine:
    """Make a plain training loop sparse; from here on just call `optimizer.step()`.

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
    return Engine(model, unwrapped(optimizer), NxMConfig.from_any(sparsity), total_steps, steps_per_epoch, seed)


def engine_of(optimizer: torch.optim.Optimizer) -> Engine | None:
    """The engine around an optimizer's steps, if there is one."""
    bracket = bracket_of(unwrapped(optimizer))
    return None if bracket is None else bracket.owner
