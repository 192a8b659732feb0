"""The method of a part is the method of the whole, with patterns that all processes solve."""

import pytest
import torch

from nxm_hf import NxMConfig
from nxm_hf.engine.method_of_part import method_of_part
from nxm_hf.layers.find import find_layers
from nxm_hf.layers.weight_part import SharedPattern, WeightPart
from nxm_hf.methods import Clock
from nxm_hf.patterns import parse
from tests.support.grids import SPARSE
from tests.support.group_of_one import group_of_one
from tests.support.models import make_bert
from tests.support.toy_training import same


@pytest.fixture(scope="module")
def part():
    with group_of_one() as shards:
        yield WeightPart(shards, find_layers(make_bert())[0])


def method_of(recipe: str, text: str):
    """Return the method of a recipe, with frames of one kind."""
    settings = {"rho": 0.1} if recipe == "admm" else {}
    if recipe == "structure-decay":
        settings["frames"] = {"2:4": ["3:4", text]}.get(text, ["unstructured:0.6", text])
    return NxMConfig(recipe, text, settings=settings).method(parse(text))


def patterns_of(method, clock) -> list:
    """Return the patterns of a method at a step: its own, and that of the method inside."""
    inner = method.method.pattern
    return [method.pattern, inner(clock) if callable(inner) else inner]


@pytest.mark.parametrize("recipe", SPARSE)
def test_every_pattern_of_a_method_is_shared_if_it_looks_at_more_than_a_part(recipe, part):
    clock = Clock(10, 10)
    method = method_of(recipe, "unstructured:0.3")
    assert method_of_part(method, None) is method
    shared = method_of_part(method, part)
    assert all(isinstance(pattern, SharedPattern) for pattern in patterns_of(shared, clock))
    assert [pattern.pattern for pattern in patterns_of(shared, clock)] == patterns_of(method, clock)
    local = method_of(recipe, "2:4")
    assert patterns_of(method_of_part(local, part), clock) == patterns_of(local, clock)


def test_a_method_without_fields_is_as_it_is_in_each_part(part):
    method = object()
    assert method_of_part(method, part) is method_of_part(method, None) is method


@pytest.mark.parametrize("recipe", SPARSE)
def test_the_method_of_a_part_that_is_the_whole_does_the_same(recipe, part):
    ends = []
    for held in (None, part):
        method = method_of_part(method_of(recipe, "unstructured:0.3"), held)
        weight = torch.randn(part.layer.shape, generator=torch.Generator().manual_seed(1))
        state = method.init(weight, Clock(0, 3, whole=held))
        for step in range(3):
            weight.grad = weight * 0.1
            method.before_step(weight, state, Clock(step, 3, whole=held))
            method.after_step(weight, state, Clock(step + 1, 3, whole=held))
        method.finish(weight, state, Clock(3, 3, whole=held))
        ends.append([weight, *(state[name] for name in sorted(state))])
    assert same(*ends)
