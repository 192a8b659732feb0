"""The state of sharded weights: gathered to the state that one process has, and cut into parts again."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from nxm_hf.engine.training_view import Held, as_tensor
from nxm_hf.layers.plan import Plan, Target
from nxm_hf.layers.sharding import Shards, shard_like, whole
from nxm_hf.methods import NO_CHANGE, Slot


@torch.no_grad()
def gather(plan: Plan, parts: dict[str, Held], keep: bool = True) -> dict[str, Held]:
    """Put together the tensors of all processes, one after the other. Every process calls this.

    Args:
        plan: The layers to prune.
        parts: The tensors of this process, as "layer/slot" -> tensor, or what is held of it.
        keep: Return the tensors; a process that does not write them needs none.

    Returns:
        The tensors that one process with whole weights has. Gathered ones are on the CPU.
    """
    if plan.shards is None:
        return parts
    targets = {target.name: target for target in plan.targets}
    gathered: dict[str, Held] = {}
    for name, part in parts.items():  # in the same order in every process
        layer, slot = name.rsplit("/", 1)
        tensor = _gathered(plan.shards, targets[layer], slot, as_tensor(part))
        if keep:
            gathered[name] = tensor.cpu()
    return gathered


def cut(plan: Plan, name: str, tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor of the state.

    Args:
        plan: The layers to prune.
        name: Name of the tensor, "layer/slot".
        tensor: The tensor that one process with whole weights has.
    """
    if plan.shards is None:
        return tensor
    layer, slot = name.rsplit("/", 1)
    target = next((target for target in plan.targets if target.name == layer), None)
    if target is not None and tensor.ndim == 2:
        return plan.shards.part(target.layer, tensor).clone()
    if slot == Slot.MASK_CHANGE and plan.shards.mesh.get_local_rank() > 0:
        return torch.zeros_like(tensor)  # the first process has the counts of all
    return tensor


def _gathered(shards: Shards, target: Target, slot: str, part: Tensor) -> Tensor:
    if part.ndim == 2:
        return shards.whole(target.layer, part)
    if slot == Slot.MASK_CHANGE:
        changes = shards.of_each(part)
        return NO_CHANGE.clone() if bool((changes == NO_CHANGE).all()) else changes.sum(0)
    return part  # the same in every process


@torch.no_grad()
def gather_optimizer(optimizer: Optimizer, keep: bool) -> dict[str, Any]:
    """Return the optimizer's state dict with whole tensors. Every process calls this.

    Args:
        optimizer: The optimizer of a sharded model.
        keep: Return the tensors; a process that does not write them needs none.
    """
    packed = optimizer.state_dict()
    gathered: dict[int, dict[str, Any]] = {}
    for number in sorted(packed["state"]):
        slots = packed["state"][number]
        gathered[number] = {}
        for name in sorted(slots):
            value = whole(slots[name]).cpu() if isinstance(slots[name], DTensor) else slots[name]
            if keep:
                gathered[number][name] = value
    return {**packed, "state": gathered}


@torch.no_grad()
def cut_optimizer(optimizer: Optimizer) -> None:
    """Cut moments that were loaded whole into parts, as their parameters are cut.

    Args:
        optimizer: The optimizer of a sharded model; its state is edited in place.
    """
    for parameter, slots in optimizer.state.items():
        for name, value in slots.items():
            if isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.ndim:
                slots[name] = shard_like(value, parameter)
