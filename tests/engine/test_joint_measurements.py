"""Measurements in turns: all weights exchange their numbers at once, and each is sent the sums of its own."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from nxm_hf.engine.joint_measurements import add_up_in_turns, measure_together
from nxm_hf.methods.base import measure_alone


def measurement(name, turns, told):
    """Yield vectors of as many numbers as the turn, and record what is sent back."""
    for turn in range(1, turns + 1):
        told.append((name, turn, (yield torch.full((turn,), 10 * name + turn))))


def test_each_measurement_is_sent_its_own_sums_after_one_exchange_a_turn():
    told, exchanged = [], []
    turns = {1: 2, 2: 0, 3: 4, 4: 1}

    def total(numbers):
        exchanged.append(len(numbers))
        assert numbers.dtype == torch.float64
        return 100 * numbers

    add_up_in_turns([measurement(name, count, told) for name, count in turns.items()], total)
    assert exchanged == [3, 4, 3, 4]
    assert len(told) == sum(turns.values())
    for name, turn, sums in told:
        assert sums.tolist() == [100 * (10 * name + turn)] * turn


def test_without_anything_to_measure_nothing_is_exchanged():
    add_up_in_turns([measurement(1, 0, [])], None)
    add_up_in_turns([], None)


def test_alone_the_numbers_of_a_process_are_the_sums():
    told = []
    measure_alone(measurement(1, 3, told))
    assert [(turn, sums.tolist()) for _, turn, sums in told] == [(turn, [10 + turn] * turn) for turn in (1, 2, 3)]


def test_weights_are_measured_without_autograd_and_an_error_passes_through_the_visit():
    seen = []

    class Failing:
        def measure(self, weight, state, clock):
            seen.append((weight, state, clock, torch.is_grad_enabled()))
            yield torch.ones(1)
            raise ValueError("no number")

    @contextmanager
    def visit(target):
        try:
            yield Failing(), "weight", "clock"
        except ValueError as error:
            raise ValueError(f"Layer {target.name}: {error}") from error

    states = {"one": {"a": 1}, "two": {}}
    targets = [SimpleNamespace(name=name) for name in states]
    with pytest.raises(ValueError, match="Layer one: no number"):
        measure_together(SimpleNamespace(total=lambda numbers: numbers), targets, states, visit)
    assert seen == [("weight", state, "clock", False) for state in states.values()]
    measure_together(None, targets, states, None)
    assert len(seen) == 2
