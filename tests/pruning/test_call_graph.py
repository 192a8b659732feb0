"""The call graph: the order of a model's calls, and the last call that uses each output."""

from functools import partial

import pytest
import torch

from nxm_hf.pruning.call_graph import CallGraph


@torch.enable_grad()
def record(model) -> CallGraph:
    """Record a model that is written as a function of `call(block, x)`."""
    graph = CallGraph()
    numbers = iter(range(100))
    model(lambda block, *inputs: graph.record(next(numbers), block, partial(lambda *xs: sum(xs) * 2, *inputs)))
    return graph


def chain(call):
    call(2, call(1, call(0, torch.ones(3))))


def skip(call):
    first = call(0, torch.ones(3))
    second = call(1, first * 3)
    call(0, second.relu() + first)


def unused(call):
    call(0, torch.ones(3))
    call(1, torch.ones(3))


def in_place(call):
    x = call(0, torch.ones(3))
    x.add_(1)
    call(1, x)


@pytest.mark.parametrize(
    "model, calls, last_use",
    [
        (chain, [0, 1, 2], [1, 2, -1]),
        (skip, [0, 1, 0], [2, 2, -1]),
        (unused, [0, 1], [-1, -1]),
        (in_place, [0, 1], [1, -1]),
    ],
)
def test_calls_and_the_last_use_of_each_output_are_recorded(model, calls, last_use):
    graph = record(model)
    assert graph.calls == calls and graph.last_use == last_use


def test_an_output_of_integers_counts_as_used_to_the_end():
    graph = CallGraph()
    graph.record(0, 0, partial(lambda: torch.arange(3)))
    assert graph.last_use == [float("inf")]


def test_outputs_are_copies_that_later_changes_do_not_touch():
    graph = record(in_place)
    assert graph.outputs[0].tolist() == [2, 2, 2] and not graph.outputs[0].requires_grad
