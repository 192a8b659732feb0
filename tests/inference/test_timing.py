"""Alternatives are timed in turns."""

import pytest
import torch

from nxm_hf.inference.timing import LEAST_ROUNDS, Timing, time_in_turns


def test_functions_run_in_turns_and_as_often_as_they_should():
    calls = []
    times = time_in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, seconds=0)
    assert calls == ["a", "b"] * (LEAST_ROUNDS + 1)
    assert {name: len(timing.times) for name, timing in times.items()} == {"a": LEAST_ROUNDS, "b": LEAST_ROUNDS}


def test_more_work_takes_longer():
    small, large = torch.randn(8, 8), torch.randn(512, 512)
    times = time_in_turns({"small": lambda: small @ small, "large": lambda: large @ large}, seconds=0.01)
    assert times["small"].median < times["large"].median


def test_median_and_quartiles_are_those_of_the_times():
    timing = Timing((1.0, 2.0, 3.0, 4.0, 100.0))
    assert timing.median == 3.0
    assert timing.spread == (pytest.approx(1.5), pytest.approx(52.0))
