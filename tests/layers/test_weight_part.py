"""The part of a weight that one process of one holds is the whole, and its patterns give the masks of the whole."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import nn

from nxm_hf.layers import weight_part
from nxm_hf.layers.find import find_layers
from nxm_hf.layers.sharding import Shards, is_cut_by_inputs
from nxm_hf.layers.weight_part import SharedPattern, WeightPart
from nxm_hf.patterns import parse
from tests.support.group_of_one import OneOfMany, group_of_one
from tests.support.models import make_bert, make_model

PATTERNS = ["unstructured:0.3", "block:4:0.5", "block:2x4:0.3", "2:4-transposable", "2:4"]
LAYERS = {"linear": lambda: find_layers(make_bert())[0], "transposed": lambda: find_layers(make_model("gpt2"))[0]}


@pytest.fixture(scope="module")
def shards():
    with group_of_one() as shards:
        yield shards


@pytest.mark.parametrize("gathered", [0, 2**20])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("text", PATTERNS)
def test_a_shared_pattern_solves_projects_and_counts_as_that_of_the_whole(text, name, gathered, shards, monkeypatch):
    monkeypatch.setattr(weight_part, "GATHERED", gathered)
    layer, pattern = LAYERS[name](), parse(text)
    shared = SharedPattern(pattern, WeightPart(shards, layer))
    assert shared.kept((0, 0)) == pattern.kept(layer.shape) and str(shared) == text
    for weight in (layer.matrix(layer.weight.detach()), (layer.matrix(layer.weight.detach()) * 100).round()):
        for verb in ("largest", "nearest", "project"):
            assert torch.equal(getattr(shared, verb)(weight), getattr(pattern, verb)(weight)), verb
        assert not torch.signbit(shared.project(weight))[shared.project(weight) == 0].any()
        assert shared.violations(weight) == pattern.violations(weight) > 0
        assert shared.violations(shared.nearest(weight)) == 0
        assert torch.equal(shared.mask(weight.abs()), pattern.mask(weight.abs()))
    with pytest.raises(ValueError, match="1 NaN"):
        shared.mask(torch.where(torch.arange(layer.weight.numel()).view(layer.shape) == 7, torch.nan, 1.0))


class Threads(Shards):
    """Shards of processes that are threads here, which exchange tensors by a list that all of them hold."""

    def __init__(self, rank: int, barrier: Barrier, board: list):
        super().__init__(nn.Module(), OneOfMany(barrier.parties, rank))
        vars(self).update(barrier=barrier, board=board)

    def exchange(self, tensor):
        self.board[self.rank] = tensor
        self.barrier.wait()
        tensors = [*self.board]
        self.barrier.wait()
        return tensors

    def total(self, numbers):
        return sum(self.exchange(numbers))

    def largest(self, number):
        return max(self.exchange(number))

    def of_each(self, numbers):
        return torch.stack(self.exchange(numbers))

    def whole(self, layer, part, shape=None):
        return torch.cat(self.exchange(part), int(is_cut_by_inputs(layer)))


@pytest.mark.parametrize("gathered", [0, 2**20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("text", PATTERNS)
def test_the_masks_of_two_or_three_parts_are_those_of_the_whole(text, name, dtype, gathered, monkeypatch):
    """Also where the parts hold weights of very different sizes."""
    monkeypatch.setattr(weight_part, "GATHERED", gathered)
    layer, pattern = LAYERS[name](), parse(text)
    sizes = torch.logspace(-3, 0, layer.shape[0])[:, None] * torch.logspace(0, 3, layer.shape[1])
    weight = (torch.randn(layer.shape, generator=torch.Generator().manual_seed(1)) * sizes).to(dtype)
    for processes in (2, 3):
        barrier, board = Barrier(processes, timeout=60), [None] * processes
        parts = [WeightPart(Threads(rank, barrier, board), layer) for rank in range(processes)]
        for verb in ("nearest", "project", "largest"):

            def act(part, verb=verb):
                return getattr(part.pattern(pattern), verb)(part.of(weight))

            with ThreadPoolExecutor(processes) as pool:
                found = torch.cat([*pool.map(act, parts)], int(name == "transposed"))
            assert torch.equal(found, getattr(pattern, verb)(weight)), (processes, verb)


@pytest.mark.parametrize("name", LAYERS)
def test_only_patterns_that_look_at_more_than_a_part_are_shared(name, shards):
    part = WeightPart(shards, LAYERS[name]())
    for text in ("2:4", "dense", "4:8-transposable"):  # one process holds whole tiles
        assert not isinstance(part.pattern(parse(text)), SharedPattern)
    for text in ("unstructured:0.5", "block:4:0.5"):
        assert isinstance(part.pattern(parse(text)), SharedPattern)


@pytest.mark.parametrize("name", LAYERS)
def test_random_numbers_of_a_part_are_those_of_the_whole(name, shards):
    part = WeightPart(shards, LAYERS[name]())
    drawn = part.random(torch.Generator().manual_seed(3))
    assert torch.equal(drawn, torch.rand(part.layer.shape, generator=torch.Generator().manual_seed(3)))
    assert part.largest(drawn.max()) == drawn.max() and part.total(drawn.sum()) == drawn.sum()
    assert torch.equal(part.gather(part.of(drawn)), drawn)
