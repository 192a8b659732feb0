"""What we must know of an optimizer: whether its step is a step, skipped, scaled or adaptive."""

from collections.abc import Iterable
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor

_REFUSED = ("lomo", "schedulefree", "schedule_free", "layerwise", "lbfgs")


def unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """What accelerate may have wrapped: the wrapper has no hooks, and steps by what it wraps."""
    return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer


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


# How torch's optimizers name them: Adam's and its kin's, SGD's and RMSprop's, Adamax's, Adagrad's, Adadelta's.
FIRST = ("exp_avg", "momentum_buffer", "grad_avg")
SECOND = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "exp_inf", "sum", "acc_delta")
SQUARES = ("exp_avg_sq", "square_avg", "sum")  # those that are squared gradients, averaged or summed
# Factored, quantized or projected: of a class, or of the library that it is from, whose AdamW may be called just that.
_NO_MOMENTS = ("adafactor", "8bit", "4bit", "lowbit", "bitsandbytes", "torchao", "galore", "apollo")


class Moments:
    """What an optimizer remembers of one weight's gradients, as matrices that can be edited in place."""

    def __init__(self, optimizer: torch.optim.Optimizer, layer: Any):
        self._optimizer, self._layer = optimizer, layer

    @property
    def squares(self) -> Tensor | None:
        """The running mean of squared gradients, but for a factor; None where there is none for each entry."""
        if not keeps_moments(self._optimizer):
            return None
        state = self._optimizer.state.get(self._layer.weight, {})
        return next((self._layer.matrix(state[name]) for name in SQUARES if state.get(name) is not None), None)

    @torch.no_grad()
    def clear(self, where: Tensor, which: str) -> None:
        """Set the moments of some entries to zero: the first, or both."""
        state = self._optimizer.state.get(self._layer.weight, {})
        for name in FIRST if which == "first" else FIRST + SECOND:
            if state.get(name) is not None:
                self._layer.matrix(state[name]).masked_fill_(where, 0.0)


def check_moments(optimizer: torch.optim.Optimizer, methods: Iterable[Any]) -> None:
    """Refuse an optimizer whose moments are not kept entry by entry, for methods that have to edit them."""
    if any(method.edits_moments for method in methods) and not keeps_moments(optimizer):
        raise ValueError(
            f"This recipe sets moments of single weights to zero, and {type(optimizer).__name__} keeps none of those. "
            'Use AdamW or SGD, as in TrainingArguments(optim="adamw_torch"), or a recipe that leaves them, such as '
            '"sr-ste".'
        )


def keeps_moments(optimizer: torch.optim.Optimizer) -> bool:
    """Whether what it remembers of gradients, if anything, is kept entry by entry."""
    kind = type(optimizer)
    full = f"{kind.__module__}.{kind.__name__}".lower()
    return not any(word in full for word in _NO_MOMENTS)
