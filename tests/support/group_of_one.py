"""A process group of this process alone, and what stands for a process of a larger group, or for all of one."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from nxm_hf.layers.sharding import Shards


@contextmanager
def group_of_one() -> Iterator[Shards]:
    """Make the group for the body of a `with`, and yield its shards."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield Shards(nn.Module(), init_device_mesh("cpu", (1,)))
    finally:
        dist.destroy_process_group()


@contextmanager
def group_without_messages(processes: int, rank: int) -> Iterator[Shards]:
    """Make a group in which this process has a rank and no other exists; what it would receive has no meaning."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=processes)
    try:
        yield Shards(nn.Module(), init_device_mesh("cpu", (processes,)))
    finally:
        dist.destroy_process_group()


class OneOfMany:
    """Stands for a mesh of several processes where no message is sent: their number, and the place of one of them."""

    def __init__(self, size: int, rank: int):
        self.size, self.get_local_rank = lambda: size, lambda: rank
