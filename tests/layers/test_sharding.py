"""Which rows of a weight FSDP2 gives to each process, and which groups it cuts."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard

from nxm_hf.layers.find import Layer, find_layers
from nxm_hf.layers.sharding import (
    Shards,
    is_cut_by_inputs,
    is_sharded_by_rows,
    local,
    part_sizes,
    plain_class,
    reshard,
    shard_like,
    tiles_are_whole,
    whole,
)
from nxm_hf.patterns import parse
from tests.support.group_of_one import OneOfMany, group_of_one, group_without_messages
from tests.support.models import make_bert, make_model
from tests.support.process_threads import Joined, in_threads


@pytest.mark.parametrize("processes", range(1, 9))
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 12, 31])
def test_parts_are_the_chunks_of_torch_and_empty_ones_after_them(size, processes):
    chunks = [len(chunk) for chunk in torch.zeros(size).chunk(processes)]
    assert part_sizes(size, processes) == chunks + [0] * (processes - len(chunks))


def test_the_plain_class_of_a_sharded_model_is_that_of_before():
    model = make_bert()
    assert plain_class(model) is type(model)
    with group_of_one():
        sharded = fully_shard(make_bert(), mesh=init_device_mesh("cpu", (1,)))
        assert type(sharded) is not type(model) and plain_class(sharded) is type(model)


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


@pytest.mark.parametrize("processes", [1, 2, 3, 5, 40])
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_parts_of_all_processes_are_the_whole(kind, processes):
    """Of a matrix, of a bias, and of a mask that each process solves for its own tiles."""
    layer, pattern = find_layers(make_model(kind))[0], parse("2:4-transposable")
    cut = int(kind == "gpt2")  # stored as [in, out], and cut by inputs
    matrix, bias = torch.rand(layer.shape), torch.rand(32)
    every = [Shards(nn.Module(), OneOfMany(processes, rank)) for rank in range(processes)]
    parts = [shards.part(layer, matrix) for shards in every]
    assert [part.shape[cut] for part in parts] == part_sizes(32, processes)
    assert torch.equal(torch.cat(parts, cut), matrix)
    assert torch.equal(torch.cat([shards.part_of_bias(bias) for shards in every]), bias)
    solved = []

    def solve(scores):
        solved.append(scores.shape[cut])
        return pattern.mask(scores)

    masks = [shards.solve_part(layer, matrix, 4, solve) for shards in every]
    assert torch.equal(torch.cat(masks, cut), pattern.mask(matrix))
    for size, part in zip(solved, parts, strict=True):
        assert size % 4 == 0 and size < part.shape[cut] + 8  # no more tiles than the part meets


class Experts(nn.Module):
    """Five experts, stored as [experts, out, in] or as [experts, in, out]."""

    def __init__(self, is_transposed):
        super().__init__()
        self.is_transposed = is_transposed
        self.up_proj = nn.Parameter(torch.rand(5, 8, 12))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_each_process_gets_whole_experts(processes, transposed):
    layer = Layer("experts.up_proj", "ffn_in", Experts(transposed), "", "up_proj")
    cut, matrix = int(transposed), layer.matrix(layer.weight.detach())
    assert layer.shape == ((8 * 5, 12), (12, 8 * 5))[cut] and is_cut_by_inputs(layer) == transposed
    every = [Shards(nn.Module(), OneOfMany(processes, rank)) for rank in range(processes)]
    parts = [shards.part(layer, matrix) for shards in every]
    assert [part.shape[cut] for part in parts] == [8 * count for count in part_sizes(5, processes)]
    assert torch.equal(torch.cat(parts, cut), matrix)
    assert tiles_are_whole(layer, 8, 8, processes) and tiles_are_whole(layer, *((8, 5), (5, 8))[cut], processes)
    assert tiles_are_whole(layer, 5, 5, processes) == (processes == 1)
    with group_of_one() as shards:
        for whole_matrix in (matrix, matrix > 0.5, matrix.t().contiguous().t()):  # in any layout
            found = shards.whole(layer, whole_matrix)
            assert torch.equal(found, whole_matrix) and found.dtype == whole_matrix.dtype


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "experts", "transposed experts"])
def test_the_parts_of_several_processes_come_together_as_the_whole_matrix(kind, processes, monkeypatch):
    if "experts" in kind:
        layer = Layer("experts.up_proj", "ffn_in", Experts(kind.startswith("transposed")), "", "up_proj")
    else:
        layer = find_layers(make_model(kind))[0]
    matrix = torch.rand(layer.shape)

    def act(shards, number):
        joined = Joined(shards.model, shards.mesh)
        return joined.whole(layer, joined.part(layer, matrix)), joined.whole(layer, joined.part(layer, matrix > 0.5))

    for numbers, flags in in_threads(monkeypatch, 1, processes, act):
        assert torch.equal(numbers, matrix) and torch.equal(flags, matrix > 0.5)


def test_a_matrix_of_another_shape_than_the_layers_is_gathered_too():
    """Such as the scores of its blocks."""
    layer = find_layers(make_bert())[0]
    with group_of_one() as shards:
        assert torch.equal(shards.whole(layer, torch.ones(8, 3), (8, 3)), torch.ones(8, 3))


def test_a_step_of_whole_weights_is_freed_before_a_part_is_looked_at():
    with group_of_one():
        model = make_bert()
        for block in model.bert.encoder.layer:
            fully_shard(block, reshard_after_forward=False)
        fully_shard(model)
        shards, layer = Shards.of(model), find_layers(model)[0]
        model(input_ids=torch.ones(1, 4, dtype=torch.long))
        assert not isinstance(layer.weight, DTensor)
        assert shards.matrix(layer).data_ptr() == local(layer.weight).data_ptr() and isinstance(layer.weight, DTensor)
        for free in (reshard, Shards.of):
            model(input_ids=torch.ones(1, 4, dtype=torch.long))
            assert not isinstance(layer.weight, DTensor) and (free(model) or shards) == shards
            assert isinstance(layer.weight, DTensor)


@pytest.mark.parametrize("names", [("shard",), ("replicate", "shard")], ids=len)
def test_a_model_that_one_process_shards_has_whole_parts(names):
    with group_of_one():
        mesh = init_device_mesh("cpu", (1,) * len(names), mesh_dim_names=names)
        model = make_bert()
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        fully_shard(model, mesh=mesh)
        shards = Shards.of(model)
        assert (shards.processes, shards.rank, shards.mesh.mesh_dim_names) == (1, 0, ("shard",))
        assert (shards.replicas and shards.replicas.mesh_dim_names) == (("replicate",) if len(names) == 2 else None)
        assert all(is_sharded_by_rows(parameter) for parameter in model.parameters())
        for layer in find_layers(model):
            matrix = shards.matrix(layer)
            assert torch.equal(matrix, before[layer.key]) and matrix.data_ptr() == local(layer.weight).data_ptr()
            assert (
                matrix.grad is None
                and not matrix.requires_grad
                and torch.equal(shards.whole(layer, matrix > 0), before[layer.key] > 0)
            )
        layer.weight.grad = layer.weight.detach().clone()
        assert torch.equal(shards.matrix(layer).grad, before[layer.key]) and local(layer.weight).grad is None
        numbers = torch.tensor([1.0, 2.0])
        for reduced in (shards.total(numbers), shards.largest(numbers)):
            assert reduced.tolist() == [1.0, 2.0]
            assert reduced.data_ptr() != numbers.data_ptr(), "the numbers of a process stay its own"
        assert shards.of_each(numbers).tolist() == [[1.0, 2.0]] and shards.total(numbers) is not numbers
        columns = torch.arange(6.0).view(2, 3).T
        assert torch.equal(shards.of_each(columns), columns[None]), "in any layout"
        spread = layer.weight
        assert torch.equal(whole(spread), before[layer.key])
        values = torch.arange(spread.numel(), dtype=torch.float64).view(spread.shape)
        like = shard_like(values, spread)
        assert like.placements == spread.placements and torch.equal(whole(like), values)
        assert like.dtype == values.dtype != spread.dtype


@pytest.mark.parametrize("rank", range(4))
@pytest.mark.parametrize("rows", [5, 6, 8, 9])
def test_of_several_processes_each_holds_its_rows_and_gathers_the_shape_and_layout_of_the_whole(rows, rank):
    """Also where their number is no multiple of that of processes: the shape does not follow from that of a part."""
    layer = Layer("linear", "ffn_in", nn.Linear(3, rows), "")
    values = torch.arange(3.0 * rows).view(rows, 3)
    own = torch.cat([values.chunk(4)[rank] if rank < len(values.chunk(4)) else values[:0]])
    with group_without_messages(4, rank) as shards:
        spread = DTensor.from_local(
            torch.zeros_like(own), shards.mesh, [Shard(0)], shape=values.shape, stride=values.stride()
        )
        assert torch.equal(local(shard_like(values, spread)), own)
        assert torch.equal(local(shard_like(values.double(), spread)), own.double())
        for found in (whole(spread), shards.whole(layer, own), shards.whole(layer, own > 0)):
            assert found.shape == values.shape and found.stride() == values.stride()


def test_numbers_of_several_processes_are_added_compared_and_stacked(monkeypatch):
    numbers = torch.tensor([[3.0, -1.0], [-2.0, 5.0], [4.0, 0.5]])

    def act(shards, number):
        return [verb(numbers[number]) for verb in (shards.total, shards.largest, shards.of_each)]

    for found in in_threads(monkeypatch, 1, 3, act):
        assert all(map(torch.equal, found, (numbers.sum(0), numbers.amax(0), numbers)))


def test_shards_are_those_of_the_same_processes_and_print_without_the_model():
    with group_of_one() as shards:
        assert Shards(nn.Linear(1, 1), shards.mesh) == shards != Shards(shards.model, OneOfMany(1, 0))
        assert shards != Shards(shards.model, shards.mesh, shards.mesh) and "model=" not in repr(shards)


def test_models_of_two_meshes_or_with_other_distributed_weights_are_refused_with_what_they_have():
    def sharded(name, **more):
        model = make_bert()
        for part in (model.bert, model):
            mesh = init_device_mesh("cpu", (1,), mesh_dim_names=(name if part is model else more.get("inner", name),))
            fully_shard(part, mesh=mesh)
        return model, mesh

    with group_of_one() as group:
        model, mesh = sharded("shard")
        assert Shards.of(model).mesh == mesh
        model.classifier.other = nn.Parameter(DTensor.from_local(torch.zeros(2, 2), mesh, [Replicate()]))
        with pytest.raises(ValueError, match=r"over a mesh of \{'shard': 1\}, and only FSDP2"):
            Shards.of(model)
        with pytest.raises(ValueError, match=r"over a mesh of \{'(in|out)': 1\}, \{'(in|out)': 1\}, and only FSDP2"):
            Shards.of(sharded("out", inner="in")[0])
        model = nn.Linear(4, 4)
        model.weight = nn.Parameter(DTensor.from_local(torch.zeros(4, 4), group.mesh, [Shard(0)]))
        with pytest.raises(ValueError, match=r"over a mesh of (torch.Size\(\[1\]\)|\(1,\)), and only FSDP2"):
            Shards.of(model)


def test_weights_are_sharded_by_rows_or_not_at_all():
    with group_of_one() as group:
        for placement, by_rows in ((Shard(0), True), (Shard(1), False), (Replicate(), False)):
            weight = DTensor.from_local(torch.zeros(4, 4), group.mesh, [placement])
            assert is_sharded_by_rows(weight) == by_rows
            model = nn.Linear(4, 4)
            model.weight = nn.Parameter(weight)
            with pytest.raises(ValueError, match=r"spread over a mesh of .*only FSDP2 is supported"):
                Shards.of(model)
    assert not is_sharded_by_rows(torch.zeros(4, 4))
