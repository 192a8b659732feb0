"""Exchanges of processes beside their parts; in more than one process they are tested by tests/distributed."""

import pytest
import torch
from torch import nn

from nxm_hf.layers import shard_exchange
from nxm_hf.layers.sharding import Shards, part_sizes
from tests.support.group_of_one import OneOfMany, group_of_one


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


def test_a_whole_parameter_is_computed_with_where_it_is():
    assert shard_exchange.computing_device(nn.Parameter(torch.zeros(2))) == torch.device("cpu")
    assert shard_exchange.computing_device(torch.zeros(2, device="meta")) == torch.device("meta")
