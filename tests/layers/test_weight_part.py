"""The part of a weight that one process of one holds is the whole, and its patterns give the masks of the whole."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import nn

from nxm_hf.layers import weight_part
from nxm_hf.layers.find import find_layers
from nxm_hf.layers.histogram_threshold import BINS
from nxm_hf.layers.sharding import Shards, is_cut_by_inputs
from nxm_hf.layers.weight_part import SharedPattern, WeightPart
from nxm_hf.patterns import Transposable, parse
from tests.support.group_of_one import OneOfMany, group_of_one
from tests.support.models import make_bert, make_model

PATTERNS = ["unstructured:0.3", "block:4:0.5", "block:4x1:0.5", "block:2x4:0.3", "2:4-transposable", "2:4"]
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
    for weight in (layer.matrix(layer.weight), (layer.matrix(layer.weight.detach()) * 100).round()):
        for verb in ("largest", "nearest", "project"):
            found = getattr(shared, verb)(weight)
            assert torch.equal(found, getattr(pattern, verb)(weight)) and not found.requires_grad, verb
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
        vars(self).update(barrier=barrier, board=board, sent=[])

    def exchange(self, tensor):
        self.sent.append(tuple(tensor.shape))
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_scores_are_gathered_up_to_the_size_of_two_histograms_and_counted_above_it(name, dtype, monkeypatch):
    """Of runs of columns all are gathered: the first of equal scores are not those of the first process."""
    assert weight_part.GATHERED == 2 * 8 * BINS
    layer = LAYERS[name]()
    scores = torch.rand(layer.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    for limit in (scores.nbytes, scores.nbytes - 1):
        monkeypatch.setattr(weight_part, "GATHERED", limit)
        process = Threads(0, Barrier(1, timeout=60), [None])
        mask = WeightPart(process, layer).keep_highest(scores, 7)
        assert torch.equal(mask, parse("unstructured:0.5").mask(scores) & (scores >= scores.flatten().topk(7)[0][-1]))
        assert (layer.shape in process.sent) == (limit == scores.nbytes or name == "transposed")


@pytest.mark.parametrize("name", LAYERS)
def test_a_process_solves_the_tiles_that_its_part_meets_and_no_others(name, monkeypatch):
    """Three processes hold 11, 11 and 10 of 32 rows or columns, and cut two of eight tiles."""
    layer, cut = LAYERS[name](), int(name == "transposed")
    scores, processes = torch.rand(layer.shape), 3
    barrier, board = Barrier(processes, timeout=60), [None] * processes
    parts = [WeightPart(Threads(rank, barrier, board), layer) for rank in range(processes)]
    noted, solve = [], Transposable.mask
    monkeypatch.setattr(Transposable, "mask", lambda self, x: noted.append(tuple(x.shape)) or solve(self, x))
    with ThreadPoolExecutor(processes) as pool:
        masks = [*pool.map(lambda part: part.pattern(Transposable(2, 4)).mask(part.of(scores)), parts)]
    monkeypatch.undo()
    assert torch.equal(torch.cat(masks, cut), Transposable(2, 4).mask(scores))
    assert sorted(shape[cut] for shape in noted) == [12, 12, 16]


@pytest.mark.parametrize("processes", range(1, 6))
@pytest.mark.parametrize("name", LAYERS)
def test_a_pattern_is_shared_just_if_a_process_gets_a_part_of_a_group_or_tile(name, processes):
    part = WeightPart(Shards(nn.Module(), OneOfMany(processes, 0)), LAYERS[name]())
    sizes = [len(chunk) for chunk in torch.zeros(32).chunk(processes)]  # of rows, or of columns if it is transposed
    for m in (2, 4, 8):
        cuts = any(size % m for size in sizes)
        assert isinstance(part.pattern(parse(f"1:{m}")), SharedPattern) == (cuts and name == "transposed")
        assert isinstance(part.pattern(parse(f"1:{m}-transposable")), SharedPattern) == cuts
    assert part.pattern(parse("dense")) == parse("dense")


def test_a_part_is_printed_without_the_model_that_is_sharded(shards):
    part = WeightPart(shards, LAYERS["linear"]())
    assert "shards" not in repr(part)


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
    with torch.device("meta"):
        drawn = part.random(torch.Generator().manual_seed(3))
    assert torch.equal(drawn, torch.rand(part.layer.shape, generator=torch.Generator().manual_seed(3)))
    assert part.largest(drawn.max()) == drawn.max() and part.total(drawn.sum()) == drawn.sum()
    assert torch.equal(part.gather(part.of(drawn)), drawn)
