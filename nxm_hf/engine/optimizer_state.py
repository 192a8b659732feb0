"""Optimizers: which ones are supported, when they skip a step, and the moments that they keep of a weight."""

from collections.abc import Iterable
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor
from torch.optim import Optimizer

from nxm_hf.layers.find import Layer
from nxm_hf.layers.sharding import local
from nxm_hf.methods import Method

# Optimizers that do not update all weights once, in place, in step(); as parts of class names and of `args.optim`.
UNSUPPORTED_OPTIMIZERS = ("lomo", "schedulefree", "schedule_free", "layerwise", "lbfgs")


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer inside accelerate's wrapper, which has no hooks of its own.

    Args:
        optimizer: An optimizer, wrapped or not.

    Returns:
        The optimizer without the wrapper.
    """
    return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer


def check_optimizer(optimizer: Optimizer) -> None:
    """Raise for an optimizer that does not update the weights once, in place, in `step()`.

    Args:
        optimizer: The optimizer.

    Raises:
        ValueError: If it is not supported.
    """
    name = type(optimizer).__name__
    if any(word in name.lower() for word in UNSUPPORTED_OPTIMIZERS) or callable(getattr(optimizer, "train", None)):
        raise ValueError(f"{name} does not update weights once per step() in place; use AdamW, SGD or Adafactor.")


def overflowed(optimizer: Optimizer) -> bool:
    """Return True if a `GradScaler` has told a fused optimizer to skip this step.

    Args:
        optimizer: The optimizer.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)


def loss_scale(optimizer: Optimizer) -> float:
    """Return the factor that gradients are still multiplied by. It is 1 unless a fused optimizer unscales them itself.

    Args:
        optimizer: The optimizer.
    """
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale)


def is_adaptive(optimizer: Optimizer) -> bool:
    """Return True if the optimizer divides gradients by their size, so that scaling a gradient has no effect.

    Args:
        optimizer: The optimizer.
    """
    return not isinstance(optimizer, torch.optim.SGD)


# Names that torch's optimizers use: Adam and its relatives, SGD and RMSprop, Adamax, Adagrad, Adadelta.
FIRST_MOMENTS = ("exp_avg", "momentum_buffer", "grad_avg")
SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "exp_inf", "sum", "acc_delta")
SQUARED_GRADIENTS = ("exp_avg_sq", "square_avg", "sum")  # averaged or summed
# Factored, quantized or projected moments, as parts of a class name or of a library's name: the AdamW of a library may
# be called AdamW too.
_WITHOUT_MOMENTS = ("adafactor", "8bit", "4bit", "lowbit", "bitsandbytes", "torchao", "galore", "apollo")


class Moments:
    """The moments that an optimizer keeps of one weight, as matrices that can be changed in place.

    Args:
        optimizer: The optimizer.
        layer: The layer of the weight.
    """

    def __init__(self, optimizer: Optimizer, layer: Layer):
        self._optimizer, self._layer = optimizer, layer

    @property
    def squares(self) -> Tensor | None:
        """Return the mean of squared gradients, up to a factor, or None if the optimizer keeps none per entry."""
        if not keeps_moments(self._optimizer):
            return None
        state = self._optimizer.state.get(self._layer.weight, {})
        names = (name for name in SQUARED_GRADIENTS if state.get(name) is not None)
        return next((self._layer.matrix(local(state[name])) for name in names), None)

    @torch.no_grad()
    def clear(self, where: Tensor, which: str) -> None:
        """Set the moments of some entries to zero.

        Args:
            where: True for these entries.
            which: "first" or "both" moments.
        """
        names = FIRST_MOMENTS if which == "first" else FIRST_MOMENTS + SECOND_MOMENTS
        for moment in known_moments(self._optimizer.state.get(self._layer.weight, {}), names):
            self._layer.matrix(local(moment)).masked_fill_(where, 0.0)


def known_moments(state: dict[str, Any], names: Iterable[str] = FIRST_MOMENTS + SECOND_MOMENTS) -> list[Tensor]:
    """Return the moments of a weight that have these names.

    Args:
        state: The optimizer's state of a weight.
        names: The names; by default all that are known.
    """
    return [state[name] for name in names if state.get(name) is not None]


def check_moments(optimizer: Optimizer, methods: Iterable[Method]) -> None:
    """Raise if a method has to edit moments that the optimizer does not keep per entry.

    Args:
        optimizer: The optimizer.
        methods: The methods of the training.

    Raises:
        ValueError: If the two do not go together.
    """
    if any(method.edits_moments for method in methods) and not keeps_moments(optimizer):
        raise ValueError(
            f"This recipe sets moments of single weights to zero, and {type(optimizer).__name__} keeps none of those. "
            'Use AdamW or SGD, as in TrainingArguments(optim="adamw_torch"), or a recipe that leaves them, such as '
            '"sr-ste".'
        )


def keeps_moments(optimizer: Optimizer) -> bool:
    """Return True if the moments of the optimizer, if it has any, are kept per entry of the weight.

    Args:
        optimizer: The optimizer.
    """
    cls = type(optimizer)
    name = f"{cls.__module__}.{cls.__name__}".lower()
    return not any(word in name for word in _WITHOUT_MOMENTS)
