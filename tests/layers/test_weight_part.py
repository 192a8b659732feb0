"""The part of a weight that one process of one holds is the whole, and its patterns give the masks of the whole."""

import pytest
import torch

from nxm_hf.layers import weight_part
from nxm_hf.layers.find import find_layers
from nxm_hf.layers.weight_part import SharedPattern, WeightPart
from nxm_hf.patterns import parse
from tests.support.group_of_one import group_of_one
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
