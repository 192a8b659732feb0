"""Schedules: when events happen, and what changes as training goes on."""

import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nxm_hf.methods.schedules import (
    ALWAYS,
    NEVER,
    Clock,
    Constant,
    Decay,
    Evenly,
    Every,
    EveryEpoch,
    Frames,
    Growth,
    ShareOfTheRest,
)

CATALOGUE = [Constant(0.5), ALWAYS, NEVER, Every(3), EveryEpoch(), Evenly(80), Evenly(80, most=3)]


def events(schedule, total, skipped=(), **fields):
    """The steps after which something happens, in a training that skips some steps."""
    found, last = [], 0
    for step in range(1, total + 1):
        if step not in skipped:
            if schedule(Clock(step, total, since=last, **fields)):
                found.append(step)
            last = step
    return found


@pytest.mark.parametrize("schedule", CATALOGUE, ids=str)
def test_a_schedule_prints_what_makes_it_again(schedule):
    assert eval(repr(schedule)) == schedule


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_progress_stays_between_zero_and_one(step, total):
    assert 0.0 <= Clock(step, total).progress <= 1.0


def test_progress_is_zero_at_the_start_and_one_at_the_end():
    assert [Clock(step, 4).progress for step in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_progress_before_the_start_is_zero():
    assert Clock(-17, 100).progress == 0.0  # a resumed run whose warm-up grew with its length


def test_a_clock_last_acted_one_step_ago_unless_it_says_otherwise():
    assert Clock(5, 10).last == 4
    assert Clock(5, 10, since=2).last == 2
    assert Clock(5, 10, since=0).last == 0


def test_a_clock_that_is_told_nothing_of_the_optimizer_is_of_one_without_scales_moments_or_parts():
    told = Clock(3, 9, None, None, adaptive=False, loss_scale=1.0, moments=None, seed=0, whole=None, weight_step=None)
    alone = Clock(3, 9)
    assert alone == told and (alone.moments, alone.whole, alone.weight_step, alone.squares) == (None,) * 4
    marked = Clock(3, 9, moments=object(), whole=object(), weight_step=object())
    assert marked == alone and repr(marked) == repr(alone), "places of objects in memory are no part of it"


def test_clocks_of_one_step_are_equal_whatever_tensors_they_give_access_to():
    clock = Clock(5, 10)
    for name in ("moments", "whole", "weight_step"):
        other = clock.but(**{name: torch.ones(2)})
        assert other == clock and hash(other) == hash(clock) and repr(other) == repr(clock)
    assert clock.but(step=6) != clock


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_counts_and_largest_entries_are_those_of_the_whole_weight(dtype):
    weight = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    count, largest = int((weight > 0).sum()), weight.abs().max()
    clocks = [(Clock(0, 1), weight)]
    for own, other in ((weight[:3], weight[3:]), (weight[3:], weight[:3]), (weight[:0], weight)):
        others_count, others_largest = (other > 0).sum(), other.abs().max()
        parts = SimpleNamespace(
            total=lambda number, others_count=others_count: number + others_count,
            largest=lambda number, others_largest=others_largest: torch.maximum(number, others_largest),
        )
        clocks.append((Clock(0, 1, whole=parts), own))
    for clock, own in clocks:
        assert clock.count(own > 0) == count and clock.largest(own.abs()) == largest


@given(st.integers(1, 300), st.integers(1, 40))
def test_every_is_due_at_each_multiple(total, steps):
    assert events(Every(steps), total) == list(range(steps, total + 1, steps))


def test_nothing_is_due_at_step_zero():
    """RESET must not fire at the first step: t counts from 1."""
    start = Clock(0, 10, since=0)
    assert not Every(1)(start) and not Evenly(1)(start) and not EveryEpoch()(replace(start, epoch=1))


@given(st.integers(1, 6000), st.integers(1, 200), st.integers(1, 60))
def test_evenly_has_the_agreed_count_the_last_at_the_end(total, spacing, most):
    schedule = Evenly(spacing, most)
    count = min(max(round(total / spacing), 1), most)
    found = events(schedule, total)
    assert len(found) == min(count, total) and found[-1] == total
    gaps = [b - a for a, b in zip([0, *found], found, strict=False)]
    assert max(gaps) - min(gaps) <= 1
    assert schedule.count(Clock(0, total)) == count
    assert schedule.interval(Clock(0, total)) == total / count


@pytest.mark.parametrize(("total", "count"), [(1, 1), (39, 1), (119, 1), (121, 2), (800, 10), (4000, 50), (9999, 50)])
def test_evenly_spaced_by_eighty_makes_between_one_and_fifty_events(total, count):
    assert len(events(Evenly(80), total)) == count


@given(st.sampled_from([Every(3), Evenly(4), Evenly(80)]), st.integers(5, 60), st.sets(st.integers(1, 60)))
def test_what_is_due_at_a_skipped_step_happens_at_the_next_one_taken(schedule, total, skipped):
    """Pitfall 8: no event is lost to a skipped step, and none happens in it."""
    taken = [step for step in range(1, total + 1) if step not in skipped]
    due = {next((step for step in taken if step >= event), None) for event in events(schedule, total)} - {None}
    assert events(schedule, total, skipped) == sorted(due)


@given(st.sampled_from(["linear", "geometric"]), st.floats(0.01, 0.99), st.integers(1, 200))
def test_a_growing_factor_begins_and_ends_where_it_should_in_equal_steps(kind, begin, total):
    factors = [Growth(kind, begin)(Clock(step, total)) for step in range(total + 1)]
    assert factors[0] == pytest.approx(begin) and factors[-1] == 1.0
    scaled = factors if kind == "linear" else [math.log(factor) for factor in factors]
    steps = [later - earlier for earlier, later in pairwise(scaled)]
    assert steps == pytest.approx([(scaled[-1] - scaled[0]) / total] * total)


@given(st.integers(1, 60), st.sets(st.integers(1, 60)))
def test_shares_of_the_rest_leave_the_part_of_training_that_is_left(total, skipped):
    """Whatever steps are skipped, and nothing once training is over."""
    left, last = 1.0, 0
    for step in range(1, total + 4):
        if step not in skipped:
            left -= left * ShareOfTheRest()(Clock(step, total, since=last))
            last = step
            assert left == pytest.approx(max(total - step, 0) / total)


@given(st.integers(1, 5), st.integers(0, 60))
def test_frames_are_equal_stretches_in_their_order(count, total):
    shown = [Frames(tuple(range(count)))(Clock(step, total)) for step in range(-2, total + 3)]
    assert shown == sorted(shown) and shown[-1] == count - 1 and (total < 1 or shown[0] == 0)
    lengths = [shown[2 : total + 2].count(frame) for frame in range(count)]
    assert sum(lengths) == total and max(lengths) - min(lengths) <= 1


def test_an_epoch_ends_after_its_steps():
    assert events(EveryEpoch(), 10, epoch=4) == [4, 8]
    assert EveryEpoch().interval(Clock(0, 10, epoch=4)) == 4


def test_an_epoch_of_unknown_length_is_an_error():
    with pytest.raises(ValueError, match=r"steps_per_epoch="):
        EveryEpoch()(Clock(1, 10))


@pytest.mark.parametrize("steps", [0, -1, 2.0, "3", None])
def test_a_number_of_steps_is_a_whole_number_of_at_least_one(steps):
    with pytest.raises(ValueError, match=f"at least 1; got {steps!r}.*Write 1"):
        Every(steps)


@pytest.mark.parametrize("schedule", CATALOGUE, ids=str)
def test_a_schedule_is_a_function_of_the_clock_alone(schedule):
    clock = Clock(7, 40, since=5, epoch=6)
    assert schedule(clock) == schedule(replace(clock)) == schedule(clock)


def test_a_constant_is_constant():
    assert [Constant("x")(Clock(step, 3)) for step in range(4)] == ["x"] * 4
    assert ALWAYS(Clock(0, 0)) is True and NEVER(Clock(9, 9)) is False


@pytest.mark.parametrize(
    ("gain", "values"),
    [
        (Decay("linear"), [1.0, 0.75, 0.5, 0.25, 0.0]),
        (Decay("linear", 0.4), [1.0, 0.6, 0.2, 0.0, 0.0]),
        (Decay("exponential"), [math.exp(-5 * step / 4) for step in range(5)]),
        (Decay("exponential", 0.3), [math.exp(-0.3 * step) for step in range(5)]),
    ],
    ids=["linear", "linear, with a rate", "exponential", "exponential, with a rate"],
)
def test_a_gain_falls_at_its_rate_or_else_over_the_whole_training(gain, values):
    assert [gain(Clock(step, 4)) for step in range(5)] == pytest.approx(values)
    assert gain(Clock(-1, 4)) == pytest.approx(1.0)


def test_a_training_of_no_steps_is_at_its_end_after_one():
    clock = Clock(1, 0, since=0)
    assert clock.progress == 1.0 and Clock(0, 0).progress == 0.0
    assert Evenly(80)(clock) and Evenly(80).interval(clock) == 1 and Evenly(80).count(clock) == 1
    assert Frames("abc")(clock) == "c" and Frames("abc")(Clock(0, 0)) == "a"
    assert ShareOfTheRest()(clock) == 1.0 and Decay("linear")(clock) == 0.0 and Growth("linear", 0.5)(clock) == 1.0


@pytest.mark.parametrize("which", ["none", "first", "both"])
def test_moments_are_read_and_cleared_where_the_optimizer_keeps_some(which):
    cleared, where = [], torch.ones(2, dtype=torch.bool)
    moments = SimpleNamespace(squares=torch.ones(2), clear=lambda *arguments: cleared.append(arguments))
    for clock, squares, count in ((Clock(0, 1), None, 0), (Clock(0, 1, moments=moments), moments.squares, 1)):
        assert clock.squares is squares
        clock.clear_moments(where, which)
        assert cleared == [(where, which)] * (count if which != "none" else 0)


def test_chance_depends_on_seed_and_step_alone_wherever_tensors_are_made():
    weight = torch.zeros(3, 5, dtype=torch.bfloat16)

    def numbers(step, seed):
        return Clock(step, 10, seed=seed).random_like(weight)

    drawn = [numbers(*each) for each in ((1, 2), (2, 1), (1, 3), (2, 2))]
    assert all(not torch.equal(one, other) for i, one in enumerate(drawn) for other in drawn[:i])
    with torch.device("meta"):
        again = numbers(1, 2)
    assert torch.equal(again, drawn[0]) and again.dtype == weight.dtype and again.shape == weight.shape
    whole = SimpleNamespace(random=lambda generator: torch.rand(3, 5, generator=generator)[:2])
    part = Clock(1, 10, seed=2, whole=whole).random_like(weight[:2])
    assert torch.equal(part, drawn[0][:2]) and part.dtype == weight.dtype
    seed = 2**70 + 5  # of any size
    assert Clock(1, 10, seed=seed).generator().initial_seed() == (seed * 1_000_003 + 1) % 2**63


def test_masks_of_scores_are_of_the_whole_weight_and_keep_its_shape():
    scores = torch.arange(12.0).view(3, 4)
    assert torch.equal(Clock(0, 1).keep_highest(scores, 5), scores > 6)
    whole = SimpleNamespace(keep_highest=lambda scores, count: (scores, count))
    assert Clock(0, 1, whole=whole).keep_highest(scores, 5) == (scores, 5)
