"""Which rows of a weight FSDP2 gives to each process, and which groups it cuts."""

import pytest
import torch

from nxm_hf.layers.find import find_layers
from nxm_hf.layers.sharding import Shards, local, part_sizes, shard_like, tiles_are_whole, whole
from tests.support.models import make_bert, make_model


@pytest.mark.parametrize("processes", range(1, 9))
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 12, 31])
def test_parts_are_the_chunks_of_torch_and_empty_ones_after_them(size, processes):
    chunks = [len(chunk) for chunk in torch.zeros(size).chunk(processes)]
    assert part_sizes(size, processes) == chunks + [0] * (processes - len(chunks))


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("group", [2, 4, 8, 32])
def test_tiles_are_cut_only_along_the_sharded_dimension(group, processes):
    linear = find_layers(make_bert())[0]  # [out, in], sharded by out
    transposed = find_layers(make_model("gpt2"))[0]  # stored as [32 inputs, out], sharded by inputs
    sizes = [len(chunk) for chunk in torch.zeros(32).chunk(processes)]
    whole = all(size % group == 0 for size in sizes)
    assert tiles_are_whole(linear, 1, group, processes) and tiles_are_whole(transposed, group, 1, processes)
    assert all(tiles_are_whole(layer, group, group, processes) == whole for layer in (linear, transposed))
    assert tiles_are_whole(linear, group, 1, processes) == tiles_are_whole(transposed, 1, group, processes) == whole


def test_whole_weights_have_no_shards_and_are_left_as_they_are():
    model = make_bert()
    weight = next(model.parameters())
    assert Shards.of(model) is None
    assert local(weight) is weight and whole(weight) is weight and shard_like(weight, weight) is weight
