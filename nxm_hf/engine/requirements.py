"""Checks of a model and an optimizer before a training starts."""

import logging
from collections.abc import Iterable, Sequence

import torch

from nxm_hf.layers.modules import has_adapter
from nxm_hf.layers.plan import Plan
from nxm_hf.methods import Clock, Masked, Method, Phases
from nxm_hf.methods.schedules import Every
from nxm_hf.text import shortened

logger = logging.getLogger("nxm_hf")


def check_trainable(plan: Plan) -> None:
    """Raise unless every target can be trained, in a precision that small updates survive.

    Args:
        plan: The layers to prune.

    Raises:
        ValueError: If a weight is in half precision, frozen, or holds NaN. If all are frozen, they must hold their
            patterns already; they are then kept.
    """
    layers = [target.layer for target in plan.targets]
    frozen = [layer.name for layer in layers if not layer.weight.requires_grad]
    if len(frozen) == len(layers) and plan.holds_pattern():
        return
    if has_adapter(plan.whole):
        _refuse(
            frozen,
            "are frozen under an adapter and dense. Prune the base model before it gets the adapter: "
            'nxm_hf.prune(model, "2:4"), or `nxm prune MODEL OUT`.',
        )
    _refuse(
        [layer.name for layer in layers if layer.weight.dtype in (torch.bfloat16, torch.float16)],
        "hold half-precision weights, in which small updates round to nothing. Load the model with "
        "dtype=torch.float32 and train with bf16=True (autocast).",
    )
    _refuse(
        frozen,
        "are frozen (requires_grad=False), so training cannot make up for what is pruned. Unfreeze them, or leave "
        "them out with exclude=[...].",
    )
    _refuse(
        [layer.name for layer in layers if layer.weight.isnan().any()],
        "hold NaN, so no mask can be computed. Load the model from a checkpoint before it diverged.",
    )


def check_held(plan: Plan, optimizer: torch.optim.Optimizer) -> None:
    """Raise unless the optimizer holds every target.

    Args:
        plan: The layers to prune.
        optimizer: The optimizer of the training.

    Raises:
        ValueError: If the optimizer does not update a weight that is to be pruned.
    """
    if not plan.trained:
        return
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    _refuse(
        [target.name for target in plan.targets if id(target.layer.weight) not in held],
        "are not held by the optimizer. Make it from model.parameters(), or leave them out with exclude=[...].",
    )


def warn_of_resets_that_never_come(methods: Iterable[Method], total_steps: int) -> None:
    """Warn if pruned weights are to be reset less often than once in a training.

    Args:
        methods: The methods of the layers.
        total_steps: Optimizer steps of the whole training.
    """
    for method in methods:
        if not isinstance(method, Phases) or not isinstance(method.method, Masked):
            continue
        begin, end = method.window(Clock(0, total_steps))
        reset = method.method.reset
        if isinstance(reset, Every) and reset.steps > end - begin:
            logger.warning(
                "every=%d is longer than the %d steps of this recipe, so pruned weights are never reset. "
                "Write every=%d or less.",
                reset.steps,
                end - begin,
                max((end - begin) // 2, 1),
            )
            return


def _refuse(names: Sequence[str], problem: str) -> None:
    if names:
        raise ValueError(f"{len(names)} layers to prune {problem} They are: {shortened(names)}.")
