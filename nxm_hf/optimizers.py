"""What we must know of an optimizer: whether its step is a step, skipped, scaled or adaptive."""

import torch

_REFUSED = ("lomo", "adalomo", "schedulefree", "schedule_free", "layerwise", "lbfgs")


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Refuse optimizers that do not update the weights once, in place, in `step()`."""
    name = type(optimizer).__name__
    if any(word in name.lower() for word in _REFUSED) or callable(getattr(optimizer, "train", None)):
        raise ValueError(f"{name} does not update weights once per step() in place; use AdamW, SGD or Adafactor.")


def overflowed(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a `GradScaler` has told a fused optimizer that it will skip this step."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found.item())


def loss_scale(optimizer: torch.optim.Optimizer) -> float:
    """What the gradients are still multiplied by; 1 unless a fused optimizer unscales them itself."""
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale.item())


def is_adaptive(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer divides gradients by their size, so that scaling them does nothing."""
    return not isinstance(optimizer, torch.optim.SGD)
