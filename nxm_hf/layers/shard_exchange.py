"""Exchange data, sums and results between processes that share sharded weights."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from nxm_hf.layers.sharding import Shards, part_sizes

T = TypeVar("T")


def computing_device(parameter: Tensor) -> torch.device:
    """Return the device that computes with a parameter, even if its parts are offloaded to the CPU.

    Args:
        parameter: The parameter.
    """
    if not isinstance(parameter, DTensor) or (kind := parameter.device_mesh.device_type) == "cpu":
        return parameter.device
    return torch.device(kind, torch.get_device_module(kind).current_device())


def share_of(shards: Shards) -> int:
    """Return the number of this process's share of the data.

    Args:
        shards: The processes. The first set has the first shares.
    """
    number = 0 if shards.replicas is None else shards.replicas.get_local_rank()
    return number * shards.processes + shards.rank


def own_share(shards: Shards, values: Sequence[T]) -> Sequence[T]:
    """Return this process's share of values. Over all processes of all sets, each value is read once.

    Args:
        shards: The processes.
        values: The values, the same in every process. Shares are contiguous, in the order of the processes.
    """
    sets = 1 if shards.replicas is None else shards.replicas.size()
    sizes, share = part_sizes(len(values), sets * shards.processes), share_of(shards)
    return values[sum(sizes[:share]) : sum(sizes[: share + 1])]


def add_up(shards: Shards, numbers: Tensor) -> None:
    """Add up numbers over the processes of all sets, in place. Every process calls this.

    Args:
        shards: The processes.
        numbers: The numbers of this process, on the device that it computes on.
    """
    for mesh in _dimensions(shards):
        dist.all_reduce(numbers, group=mesh.get_group())


def exchange(shards: Shards, value: T) -> list[T]:
    """Return the values of the processes of all sets, in the order of their shares. Every process calls this.

    Args:
        shards: The processes.
        value: Anything that can be pickled.
    """
    values: list[Any] = [value]
    for mesh in _dimensions(shards):
        gathered: list[Any] = [None] * mesh.size()
        dist.all_gather_object(gathered, values, group=mesh.get_group())
        values = [one for each in gathered for one in each]
    return values


def hand_out(shards: Shards, owner: int, tensor: Tensor) -> Tensor:
    """Broadcast the tensor of one process, and return it. Every process calls this.

    Args:
        shards: The processes. The tensor of the first set is used in all sets.
        owner: The number, within its set, of the process that has the tensor.
        tensor: The tensor; in other processes one of its shape and type, which is overwritten.
    """
    tensor = tensor.contiguous()
    dist.broadcast(tensor, dist.get_global_rank(shards.mesh.get_group(), owner), group=shards.mesh.get_group())
    if shards.replicas is not None:  # the sets have the same values up to rounding
        group = shards.replicas.get_group()
        dist.broadcast(tensor, dist.get_global_rank(group, 0), group=group)
    return tensor


def _dimensions(shards: Shards) -> list[DeviceMesh]:
    return [shards.mesh] if shards.replicas is None else [shards.mesh, shards.replicas]
