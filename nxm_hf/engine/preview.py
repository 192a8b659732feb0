"""A preview: the deployed view pruned with training data before the training prunes so.

Pruning with data corrects biases too. While a preview is shown, the biases of the training are kept beside its weights,
and are a part of the state of a checkpoint.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nxm_hf.layers.plan import Target
from nxm_hf.layers.sharding import local, shard_like, whole
from nxm_hf.pruning.during_training import CalibratedPruner
from nxm_hf.storage.state_file import Tensors

BIAS = "/bias"  # after the name of a layer


def show_pruned(pruner: CalibratedPruner | None, phase: str, targets: Sequence[Target], training: Tensors) -> bool:
    """Prune as the training will, if its recipe previews. Every process of a training calls this.

    Args:
        pruner: What prunes the model in the middle of the training, or None.
        phase: The current phase.
        targets: The layers.
        training: Gets a copy of what this changes: this process's part of each weight by the name of its layer, and
            each whole bias by that name and "/bias".

    Returns:
        True if the weights now hold their pattern.
    """
    if pruner is None or not pruner.is_to_preview(phase):
        return False
    with torch.no_grad():
        for target in targets:
            training[target.name] = target.matrix().detach().clone()
            if target.layer.bias is not None:
                training[target.name + BIAS] = whole(target.layer.bias.detach()).clone()
    with torch.enable_grad():  # some methods descend
        return pruner.preview()


def biases_of(copies: Tensors) -> Tensors:
    """Return the biases among the copies of a preview, by their names in the state.

    Args:
        copies: What `show_pruned` copied.
    """
    return {name: tensor for name, tensor in copies.items() if name.endswith(BIAS)}


@torch.no_grad()
def put_back(target: Target, weight: Tensor | None, bias: Tensor | None) -> None:
    """Write a weight and a bias into a layer.

    Args:
        target: The layer.
        weight: This process's part of the weight; None leaves the weight as it is.
        bias: The whole bias; None leaves the bias as it is.
    """
    if weight is not None:
        target.matrix().copy_(weight)
    if bias is not None and target.layer.bias is not None:
        local(target.layer.bias).copy_(local(shard_like(bias, target.layer.bias)))
