"""Exchanges of processes beside their parts; in more than one process they are tested by tests/distributed."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from nxm_hf.layers import shard_exchange
from nxm_hf.layers.sharding import Shards, part_sizes
from tests.support.group_of_one import OneOfMany, group_of_one
from tests.support.process_threads import in_threads


@pytest.mark.parametrize(("sets", "processes"), [(1, 2), (1, 5), (2, 2), (3, 2)])
@pytest.mark.parametrize("count", [0, 1, 4, 11])
def test_the_shares_of_all_processes_are_all_values_in_order(sets, processes, count):
    values, shares = list(range(count)), []
    for number in range(sets):
        for rank in range(processes):
            replicas = OneOfMany(sets, number) if sets > 1 else None
            shards = Shards(nn.Module(), OneOfMany(processes, rank), replicas)
            assert shard_exchange.share_of(shards) == len(shares)
            shares.append(shard_exchange.own_share(shards, values))
    assert [value for share in shares for value in share] == values
    assert list(map(len, shares)) == part_sizes(count, sets * processes)


def test_one_process_exchanges_with_itself():
    with group_of_one() as shards:
        numbers = torch.tensor([1.0, 2.0])
        shard_exchange.add_up(shards, numbers)
        assert numbers.tolist() == [1.0, 2.0]
        assert shard_exchange.exchange(shards, {"a": 1}) == [{"a": 1}]
        columns = torch.arange(6.0).view(2, 3).T
        assert torch.equal(shard_exchange.hand_out(shards, 0, columns), columns)


@pytest.mark.parametrize(("sets", "processes"), [(1, 3), (2, 2), (3, 2)])
def test_all_processes_of_all_sets_add_up_exchange_and_get_what_one_of_the_first_set_has(sets, processes, monkeypatch):
    count = sets * processes
    numbers = torch.arange(2.0 * count).view(count, 2) ** 2

    def act(shards, number):
        added, own = numbers[number].clone(), numbers[number].clone()
        shard_exchange.add_up(shards, added)
        owned = [shard_exchange.hand_out(shards, owner, own.clone()) for owner in range(processes)]
        columns = (torch.arange(6.0) + number).view(2, 3).T  # in any layout
        assert torch.equal(shard_exchange.hand_out(shards, 1, columns), (torch.arange(6.0) + 1).view(2, 3).T)
        return added, shard_exchange.exchange(shards, number), torch.stack(owned)

    for added, exchanged, owned in in_threads(monkeypatch, sets, processes, act):
        assert torch.equal(added, numbers.sum(0)) and exchanged == [*range(count)]
        assert torch.equal(owned, numbers[:processes])


def test_one_process_of_one_set_hands_out_and_adds_up_in_both_dimensions_of_its_mesh():
    with group_of_one():
        mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("replicate", "shard"))
        shards, numbers = Shards(nn.Module(), mesh["shard"], mesh["replicate"]), torch.tensor([1.0, 2.0])
        shard_exchange.add_up(shards, numbers)
        assert shard_exchange.hand_out(shards, 0, numbers).tolist() == numbers.tolist() == [1.0, 2.0]
        assert shard_exchange.exchange(shards, 5) == [5] and shard_exchange.share_of(shards) == 0


def test_a_parameter_whose_parts_are_offloaded_is_computed_with_on_the_current_device_of_its_mesh(monkeypatch):
    handle = SimpleNamespace(current_device=lambda: 1)
    monkeypatch.setattr(torch, "get_device_module", {"meta": handle}.__getitem__)  # stands for that of GPUs
    with group_of_one():
        parts = torch.zeros(2, 2, device="meta")
        parameter = DTensor.from_local(parts, init_device_mesh("meta", (1,)), [Shard(0)])
        assert shard_exchange.computing_device(parameter) == torch.device("meta", 1) != parameter.device


def test_a_whole_parameter_is_computed_with_where_it_is():
    assert shard_exchange.computing_device(nn.Parameter(torch.zeros(2))) == torch.device("cpu")
    assert shard_exchange.computing_device(torch.zeros(2, device="meta")) == torch.device("meta")


def test_a_sharded_parameter_of_a_cpu_is_computed_with_there():
    with group_of_one() as shards:
        parameter = DTensor.from_local(torch.zeros(2, 2), shards.mesh, [Shard(0)])
        assert shard_exchange.computing_device(parameter) == torch.device("cpu")
