"""Checks of a model and an optimizer before a training starts."""

import logging
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from nxm_hf.config import NxMConfig
from nxm_hf.layers.modules import has_adapter
from nxm_hf.layers.plan import Plan, Target
from nxm_hf.layers.sharding import is_sharded_by_rows
from nxm_hf.methods import ADMM, Clock, DenseTraining, Masked, Method, Phases, Rewiring
from nxm_hf.methods.schedules import Every
from nxm_hf.patterns import NM
from nxm_hf.text import shortened

logger = logging.getLogger("nxm_hf")
CONVERGED = 0.1  # the largest share of the norm that pruning takes once ADMM has converged
_IN_PARTS = (ADMM, DenseTraining, Masked, Rewiring)  # these work on parts: pattern and clock refer to the whole weight


def check_trainable(plan: Plan) -> None:
    """Raise unless every target can be trained, in a precision that small updates survive.

    Args:
        plan: The layers to prune.

    Raises:
        ValueError: If a weight has no values, is in half precision or frozen, or holds NaN. If all are frozen, they
            must hold their patterns already; they are then kept.
    """
    layers = [target.layer for target in plan.targets]
    _refuse(
        [layer.name for layer in layers if layer.weight.is_meta],
        "have no values in memory: they are on the meta device, where device_map= leaves what it offloads. Load the "
        'model without device_map=, or with device_map="cpu".',
    )
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
        _holding_nan(plan),
        "hold NaN, so no mask can be computed. Load the model from a checkpoint before it diverged.",
    )


def check_shards(plan: Plan, config: NxMConfig) -> None:
    """Raise unless every weight can be trained in parts.

    Args:
        plan: The layers to prune. They may be sharded already or not yet.
        config: What to prune and how.

    Raises:
        ValueError: If the recipe or a layer needs whole weights.
    """
    if (start := config.calibrated_start) is not None and plan.whole is not plan.model:
        raise ValueError(
            f"{config.recipe} prunes with {start.method} here, and FSDP2 shards a {type(plan.whole).__name__} as a "
            f"whole; write {start.without_data}, or use DDP (torchrun) instead."
        )
    for target in plan.targets:
        method, is_cut = config.method(target.pattern).method, target.pattern_here is not target.pattern
        if isinstance(method, ADMM) and method.rho == "quantile" and (is_cut or not isinstance(target.pattern, NM)):
            raise ValueError(
                f'rho="quantile" needs whole groups, and FSDP2 may cut those of {target.pattern}; write '
                'settings={"rho": "auto"}, or use DDP (torchrun) instead.'
            )
        if not isinstance(method, _IN_PARTS):
            raise ValueError(
                f"{config.recipe} may look at whole weights, and FSDP2 shards them; use DDP (torchrun) instead, or a "
                'recipe such as "sr-ste".'
            )
    if plan.shards is not None:
        others = [target.name for target in plan.targets if not is_sharded_by_rows(target.layer.weight)]
        if others:
            raise ValueError(
                f"{shortened(others)} are not sharded by rows; call fully_shard on all of them, without "
                "shard_placement_fn= and ignored_params=."
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


def check_state(targets: Iterable[Target], states: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Raise unless a state has the weight of every target, and its matrices and biases have the shapes of the model's.

    Without this, a matrix of one row would be copied into every row.

    Args:
        targets: The layers to restore.
        states: The tensors of the state by layer and slot; of sharded weights, this process's parts.

    Raises:
        ValueError: If a weight is missing, or a shape differs. Nothing was changed.
    """
    for target in targets:
        state, bias = states.get(target.name, {}), target.layer.bias
        if "weight" not in state:
            raise ValueError(f"The state holds no weight of {target.name}. Resume from another checkpoint.")
        shape = tuple(target.matrix().shape)
        needed = {slot: shape for slot, tensor in state.items() if slot == "weight" or tensor.ndim > 1}
        if "bias" in state:
            needed["bias"] = () if bias is None else tuple(bias.shape)
        for slot, fitting in needed.items():
            if tuple(state[slot].shape) != fitting or (slot == "bias" and bias is None):
                raise ValueError(
                    f"{target.name}/{slot} is {tuple(state[slot].shape)} in the state, and this model "
                    f"{f'needs {fitting}' if fitting else 'has none'}. Resume from another checkpoint, or start from "
                    "the weights alone."
                )


def warn_of_skipped(plan: Plan) -> None:
    """Warn of layers that stay dense, if there are any.

    Args:
        plan: The layers to prune, and those that are skipped.
    """
    if plan.skipped:
        share = 100 * plan.skipped_share
        logger.warning("Left dense: %s. They hold %.1f %% of the model's weights.", plan.reasons, share)


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


def warn_of_end(step: int, total_steps: int, phase: str, pruned: float, similarity: float) -> bool:
    """Warn if a training ends before its last step, or ADMM before W and Z are close.

    Args:
        step: Optimizer steps done.
        total_steps: Optimizer steps of the whole training.
        phase: The phase that it ends in.
        pruned: The share of the norm of the weights that pruning takes.
        similarity: The share of the last mask that was kept before.

    Returns:
        True if there was something to warn of.
    """
    if step < total_steps:
        logger.warning(
            "Training ends at step %d of %d, in the phase %r; pruning now takes %.4f of the norm of the weights.",
            step,
            total_steps,
            phase,
            pruned,
        )
    elif pruned > CONVERGED:
        logger.warning(
            "ADMM has not converged: pruning takes %.4f of the norm of the weights, and %.4f of the last mask was "
            "kept before. Raise rho (or contraction), the learning rate or the number of steps; or write "
            "settle=0.25 to train on with a frozen mask.",
            pruned,
            similarity,
        )
    return step < total_steps or pruned > CONVERGED


def _holding_nan(plan: Plan) -> list[str]:
    """Return the layers with a NaN, in whichever process."""
    found = torch.tensor([bool(target.matrix().isnan().any()) for target in plan.targets], dtype=torch.int64)
    if plan.shards is not None:
        found = plan.shards.total(found)
    return [target.name for target, flag in zip(plan.targets, found.tolist(), strict=True) if flag]


def _refuse(names: Sequence[str], problem: str) -> None:
    if names:
        raise ValueError(f"{len(names)} layers to prune {problem} They are: {shortened(names)}.")
