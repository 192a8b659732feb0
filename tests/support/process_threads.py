"""Threads that stand for processes: what torch would exchange between processes, they exchange by lists."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from nxm_hf.layers.sharding import Shards

REDUCE = {dist.ReduceOp.SUM: torch.sum, dist.ReduceOp.MAX: torch.amax}


class Group:
    """Some of the threads, by their numbers among all of them."""

    def __init__(self, ranks: Sequence[int]):
        self.ranks, self.barrier, self.board = ranks, Barrier(len(ranks), timeout=60), [None] * len(ranks)


class Member:
    """The place of one thread in a group: its mesh of one dimension, and its process group."""

    device_type = "cpu"

    def __init__(self, group: Group, place: int):
        self.group, self.place = group, place

    def size(self) -> int:
        return len(self.group.ranks)

    def get_local_rank(self) -> int:
        return self.place

    def get_group(self) -> "Member":
        return self

    def exchanged(self, value: Any) -> list:
        """Return the values of all threads of the group."""
        self.group.board[self.place] = value.clone() if isinstance(value, Tensor) else value
        self.group.barrier.wait()
        values = [*self.group.board]
        self.group.barrier.wait()
        return values


def all_reduce(tensor: Tensor, op: Any = dist.ReduceOp.SUM, group: Any = None) -> None:
    tensor.copy_(REDUCE[op](torch.stack(group.exchanged(tensor)), 0))


def all_gather(tensors: list[Tensor], tensor: Tensor, group: Any = None) -> None:
    for place, each in zip(tensors, group.exchanged(tensor), strict=True):
        place.copy_(each)


def all_gather_object(values: list, value: Any, group: Any = None) -> None:
    values[:] = group.exchanged(value)


def broadcast(tensor: Tensor, src: int, group: Any = None) -> None:
    assert tensor.is_contiguous(), "torch sends no other between GPUs"
    tensor.copy_(group.exchanged(tensor)[group.group.ranks.index(src)])


def get_global_rank(group: Any, place: int) -> int:
    return group.group.ranks[place]


class Joined(Shards):
    """Shards of threads, whose parts are put one behind the other along the dimension in which torch has cut them."""

    def _gathered(self, part: Tensor, shape: torch.Size, dimension: int) -> Tensor:
        found = torch.cat(self.mesh.exchanged(part), dimension)
        assert found.shape == shape
        return found


def in_threads(monkeypatch: pytest.MonkeyPatch, sets: int, processes: int, act: Callable[[Shards, int], Any]) -> list:
    """Call a function with the shards and the number of each process; return what it returned, by number.

    An error in one of them ends all.
    """
    for function in (all_reduce, all_gather, all_gather_object, broadcast, get_global_rank):
        monkeypatch.setattr(dist, function.__name__, function)
    across = [Group([number * processes + rank for number in range(sets)]) for rank in range(processes)]
    within = [Group(range(number * processes, (number + 1) * processes)) for number in range(sets)]

    def run(share: int) -> Any:
        number, rank = divmod(share, processes)
        replicas = Member(across[rank], number) if sets > 1 else None
        try:
            return act(Shards(nn.Module(), Member(within[number], rank), replicas), share)
        except BaseException:
            for group in (*across, *within):  # so that the others do not wait for this thread
                group.barrier.abort()
            raise

    with ThreadPoolExecutor(sets * processes) as pool:
        return [*pool.map(run, range(sets * processes))]
