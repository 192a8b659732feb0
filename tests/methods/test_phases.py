"""Phases: a method between a dense warm-up and a frozen mask."""

import pytest
import torch

from nxm_hf import NxMConfig
from nxm_hf.methods import PHASES, Masked, Phases, keep
from nxm_hf.methods.base import measure_alone
from nxm_hf.methods.schedules import ALWAYS, Clock
from nxm_hf.methods.scores import as_mask
from tests.support.method_runs import OVER_OPTIMIZERS, PATTERN, STEPS, TWO_FOUR, assert_agrees, by_algorithm_1
from tests.support.scores import Remembered, generator
from tests.support.toy_training import OPTIMIZERS, same


@OVER_OPTIMIZERS
@pytest.mark.parametrize("settle", [0.25, 0.5])
def test_settle_after_ste_is_fix(settle, optimizer):
    """FIX zeroes the non-participating weights from step v on, which is to freeze the mask of step v - 1."""
    make_optimizer, end = OPTIMIZERS[optimizer], STEPS - round(settle * STEPS)
    method = Phases(Masked(TWO_FOUR), PATTERN, settle=settle)
    assert_agrees(method, make_optimizer, by_algorithm_1(optimizer, v=end + 1))


class KeepsTheLast:
    """A user's method that prunes the first half of each four, whatever its size."""

    init = staticmethod(lambda weight, clock: {})
    before_step = after_step = staticmethod(lambda weight, state, clock: None)

    def finish(self, weight, state, clock):
        mask = (torch.arange(weight.shape[-1]) % 4 >= 2).expand_as(weight)
        keep(weight, mask)
        return mask


def test_the_frozen_mask_is_the_one_that_finish_returned():
    """Solved anew from the weight it would prefer an earlier zero to a kept weight that just is zero."""
    method = Phases(KeepsTheLast(), PATTERN, settle=0.5)
    weight = torch.tensor([[4.0, 3.0, 2.0, 0.0]])
    state = method.init(weight, Clock(0, 2))
    method.after_step(weight, state, Clock(1, 2))
    assert weight.tolist() == [[0.0, 0.0, 2.0, 0.0]] and PHASES[state["phase"]] == "settle"
    for step in (2, 3):  # and it is not solved again
        assert state["mask"].tolist() == [[False, False, True, True]]
        method.before_step(weight, state, Clock(step - 1, 3))
        method.after_step(weight, state, Clock(step, 3))
    assert not method.edits_moments


def test_a_warm_up_of_all_steps_leaves_the_method_a_clock_of_one():
    seen = []

    class Begins(KeepsTheLast):
        def init(self, weight, clock):
            seen.append((clock.step, clock.last, clock.total))
            return {}

    method, weight = Phases(Begins(), PATTERN, warmup=0.9), torch.ones(1, 4)
    state = method.init(weight, Clock(0, 4))
    for step in range(1, 5):
        method.after_step(weight, state, Clock(step, 4))
    assert seen == [(0, -1, 1)] and PHASES[state["phase"]] == "recipe"


def test_a_measurement_is_that_of_the_method_by_its_own_clock():
    class Measures(KeepsTheLast):
        def measure(self, weight, state, clock):
            seen.append((weight, dict(state), clock, (yield torch.ones(2))))

    seen, weight = [], torch.ones(1, 4)
    method = Phases(Measures(), PATTERN, warmup=0.25)
    state = method.init(weight, Clock(3, 8))
    assert measure_alone(method.measure(weight, state, Clock(4, 8))) is None
    (found,) = seen
    assert found[:3] == (weight, state, Clock(2, 6, since=1)) and found[3].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("warmup", "settle", "phases"),
    [(0, 0, "111111111111"), (0.25, 0, "000111111111"), (0, 0.25, "111111111222"), (0.25, 0.5, "000111222222")],
)
def test_the_phase_of_a_step_follows_from_warmup_and_settle(warmup, settle, phases):
    method = Phases(Masked(TWO_FOUR), PATTERN, warmup, settle)
    assert "".join(str(method.phase_at(Clock(step, 12))) for step in range(12)) == phases
    assert Phases(method.method, PATTERN) == Phases(method.method, PATTERN, warmup=0.0, settle=0.0, early=0)


@pytest.mark.parametrize("scores", ["magnitude", "fisher"])
def test_in_a_warm_up_the_mask_to_deploy_is_that_of_the_scores_of_the_method(scores):
    method, weight = Phases(Masked(TWO_FOUR, scores=scores), PATTERN, warmup=0.5), torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    clock = Clock(1, 4, moments=Remembered(torch.tensor([[1.0, 1.0, 9.0, 100.0]])))
    state = method.init(weight, clock)
    assert PHASES[state["phase"]] == "warmup" and not method.is_finished(weight, state, clock)
    method.finish(weight, state, clock)
    assert weight.tolist() == [[4.0, 3.0, 0.0, 0.0] if scores == "magnitude" else [0.0, 0.0, 2.0, 1.0]]


@pytest.mark.parametrize("settle", [0, 0.25])
@pytest.mark.parametrize("warmup", [0, 0.25, 0.5])
def test_a_method_sees_the_clock_of_its_own_steps_alone(warmup, settle):
    seen = []

    class Notes:
        def init(self, weight, clock):
            seen.append(("init", clock))
            return {}

        def before_step(self, weight, state, clock):
            seen.append(("before", clock))

        def after_step(self, weight, state, clock):
            seen.append(("after", clock))

        def finish(self, weight, state, clock):
            seen.append(("finish", clock))
            return weight != 0

    method, weight = Phases(Notes(), PATTERN, warmup, settle), torch.randn(4, 8)
    state = method.init(weight, Clock(0, 12))
    for step in range(12):
        method.before_step(weight, state, Clock(step, 12, since=step))
        method.after_step(weight, state, Clock(step + 1, 12, since=step))
    own = 12 - round(12 * warmup) - round(12 * settle)
    each_step = [verb for step in range(own) for verb in (("before", step, step), ("after", step + 1, step))]
    found = [(verb, clock.step, clock.last) for verb, clock in seen if verb not in ("init", "finish")]
    assert found == each_step and all(clock.total == own for _, clock in seen)
    ends = [(verb, clock.step) for verb, clock in seen if verb in ("init", "finish")]
    assert ends == [("init", 0), *([("finish", own)] if settle else [])]


@pytest.mark.parametrize("early", [0, 1, 5, 99])
@pytest.mark.parametrize("settle", [0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("warmup", [0, 0.25, 0.5])
def test_a_mask_is_frozen_early_by_so_many_steps_as_leave_one_to_the_method(warmup, settle, early):
    begin, latest = round(12 * warmup), 12 - round(12 * settle)
    window = Phases(Masked(TWO_FOUR), PATTERN, warmup, settle, early).window(Clock(0, 12))
    if not settle:
        assert window == (begin, 12)
    else:
        assert window == (begin, latest - early if latest - early > begin else min(begin + 1, latest))


def test_a_phase_is_entered_when_the_state_is_of_an_earlier_one():
    method = Phases(Masked(TWO_FOUR), PATTERN, warmup=0.25, settle=0.25)
    states = [None, *({"phase": torch.tensor(phase)} for phase in range(3))]
    entering = {phase: [method.is_entering(phase, state, Clock(6, 12)) for state in states] for phase in PHASES}
    assert entering == {
        "warmup": [True, False, False, False],
        "recipe": [True, True, False, False],
        "settle": [False, False, False, False],
    }


@pytest.mark.parametrize("recipe", ["ste", "sr-ste", "asp", "admm", "alps", "fade", "reset", "mask-decay"])
def test_what_is_told_to_be_kept_at_the_end_is_what_finish_leaves(recipe):
    """In each phase and at each step, so that an engine may write it itself. To ask changes nothing."""
    config = NxMConfig(recipe, "2:4", warmup=0.25, settle=0.25)
    method, weight = config.method(PATTERN), torch.nn.Parameter(torch.randn(8, 16, generator=generator()))
    told = set()
    with torch.no_grad():
        clock = Clock(0, 12, moments=Remembered(torch.rand(8, 16)))
        state = method.init(weight, clock)
        for step in range(12):
            weight.grad = torch.randn(8, 16, generator=generator(step))
            measure_alone(method.measure(weight, state, clock))
            method.before_step(weight, state, clock)
            weight.add_(weight.grad, alpha=-0.1)
            clock = clock.but(step=step + 1, since=step, total=12)
            method.after_step(weight, state, clock)
            before = [weight.clone(), *(value.clone() for value in state.values())]
            kept = method.kept_at_finish(weight, state, clock)
            assert same(before, [weight, *state.values()])
            told.add((PHASES[state["phase"]], kept is not None))
            end, copies = weight.clone(), {name: value.clone() for name, value in state.items()}
            mask = method.finish(end, copies, clock)
            if kept is not None:
                assert torch.equal(as_mask(kept[1], kept[0]), mask) and torch.equal(
                    torch.where(mask, kept[0], 0.0), end
                )
    assert told == {("warmup", False), ("recipe", True), ("settle", True)}


class FinishesAnew(Masked):
    """A user's method that ends otherwise, and tells of nothing."""

    def finish(self, weight, state, clock):
        return Masked.finish(self, weight, state, clock)


class TellsAnew(Masked):
    """One that overrides what is told of the end, and not what `finish` does."""

    def kept_at_finish(self, weight, state, clock):
        return Masked.kept_at_finish(self, weight, state, clock)

    def is_finished(self, weight, state, clock):
        return Masked.is_finished(self, weight, state, clock)


class OverridesAll(FinishesAnew):
    """One whose verbs belong together."""

    finish, kept_at_finish, is_finished = FinishesAnew.finish, TellsAnew.kept_at_finish, TellsAnew.is_finished


class OverridesNone(OverridesAll):
    """One that inherits all."""


KINDS = {Masked: True, FinishesAnew: False, TellsAnew: False, OverridesAll: True, OverridesNone: True}


@pytest.mark.parametrize("kind", [*KINDS, KeepsTheLast])
def test_a_class_tells_of_its_end_if_it_defines_the_verbs_and_none_is_overridden_alone(kind):
    """It tells what it keeps, and that a weight which is frozen already is finished."""
    method = Phases(kind() if kind is KeepsTheLast else kind(TWO_FOUR, freeze=ALWAYS), PATTERN)
    weight, clock = torch.randn(2, 4), Clock(0, 2)
    state = method.init(weight, clock)
    kept = method.kept_at_finish(weight, state, clock)
    assert (kept is not None) == method.is_finished(weight, state, clock) == KINDS.get(kind, False)
