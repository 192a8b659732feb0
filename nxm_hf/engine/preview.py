"""Preview: prune the deployed weights with training data, before the training itself does so.

Pruning with data also changes biases. During a preview the training's biases are kept beside its weights. Both are
saved in the state of a checkpoint.
"""

import logging
from collections.abc import Mapping, Sequence

import torch

from nxm_hf.engine.training_view import Difference, Held, as_tensor
from nxm_hf.layers.plan import Target
from nxm_hf.layers.sharding import local, shard_like, whole
from nxm_hf.pruning.during_training import CalibratedPruner
from nxm_hf.storage.state_file import Tensors

logger = logging.getLogger("nxm_hf")
BIAS = "/bias"  # after the name of a layer


def show_pruned(
    pruner: CalibratedPruner | None, phase: str, targets: Sequence[Target], training: dict[str, Held]
) -> bool:
    """Prune as the training will do later, if its recipe has `preview=True`. Every process of a training calls this.

    Args:
        pruner: Prunes the model in the middle of the training. None if the recipe does no such pruning.
        phase: The current phase.
        targets: The layers.
        training: A dict to which copies of the changed tensors are added. The key of a weight is the name of its layer,
            and the value is this process's part. The key of a bias is that name and "/bias", and the value is the whole
            bias.

    Returns:
        True if the weights now hold their pattern.
    """
    if pruner is None or not pruner.is_to_preview(phase):
        return False
    with torch.no_grad():
        for target in targets:
            training[target.name] = target.matrix().clone()
            if target.layer.bias is not None:
                training[target.name + BIAS] = whole(target.layer.bias).clone()
    with torch.enable_grad():  # some methods train by gradient descent
        return pruner.preview()


def biases_of(copies: Mapping[str, Held]) -> Tensors:
    """Return the biases among the copies of a preview, by their names in the state.

    Args:
        copies: The copies that `show_pruned` made.
    """
    return {name: as_tensor(copy) for name, copy in copies.items() if name.endswith(BIAS)}


@torch.no_grad()
def put_back(target: Target, weight: Held | None, bias: Held | None) -> None:
    """Write a weight and a bias into a layer.

    Args:
        target: The layer.
        weight: This process's part of the weight, or its difference from it; None leaves the weight as it is.
        bias: The whole bias; None leaves the bias as it is.
    """
    if isinstance(weight, Difference):
        if weight.has_changed:
            logger.warning(
                "Other code has changed %s.weight in place inside `with engine.deployed():`. The training goes on with "
                "these changes. Change a copy of the model instead.",
                target.name,
            )
        weight.undo(target.matrix())
    elif weight is not None:
        target.matrix().copy_(weight)
    if bias is not None and target.layer.bias is not None:
        local(target.layer.bias).copy_(local(shard_like(as_tensor(bias), target.layer.bias)))
