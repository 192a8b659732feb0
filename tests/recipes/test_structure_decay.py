"""`structure-decay`: its frames."""

import pytest
import torch
from torch import nn

from nxm_hf import NxMConfig, attach, recipes
from nxm_hf.methods.schedules import Clock, Frames
from nxm_hf.patterns import NM, parse
from tests.support.recipe_runs import attached, attached_weight
from tests.support.toy_training import Toy, weights


def ladder(pattern, schedule="stepwise"):
    return [str(frame) for frame in recipes.structure_decay(parse(pattern), schedule).pattern.values]


@pytest.mark.parametrize(
    ("pattern", "schedule", "frames"),
    [
        ("1:16", "stepwise", "15:16 8:16 4:16 2:16 1:16"),
        ("1:8", "stepwise", "7:8 4:8 2:8 1:8"),
        ("2:4", "stepwise", "3:4 2:4"),
        ("1:2", "stepwise", "1:2"),
        ("3:12", "stepwise", "11:12 6:12 3:12"),
        ("1:8", "geometric", "8:64 4:32 2:16 1:8"),
        ("2:4", "geometric", "16:32 8:16 4:8 2:4"),
    ],
)
def test_the_frames_of_structure_decay_are_those_of_the_paper(pattern, schedule, frames):
    assert ladder(pattern, schedule) == frames.split()


def test_a_geometric_ladder_has_one_density():
    frames = recipes.structure_decay(NM(1, 8), "geometric").pattern.values
    assert {frame.density for frame in frames} == {1 / 8}


def test_the_frames_of_a_run_start_where_the_paper_starts_them():
    """n = 350, d = f = 35, 1:16: frames at 35, 91, 147, 203 and 259, counted in steps done."""
    weight, starts = nn.Parameter(torch.randn(2, 16)), {}
    stepper = torch.optim.SGD([weight], lr=0.0)
    attached_weight(weight, stepper, "structure-decay", 350, "1:16", warmup=0.1, settle=0.1)
    for done in range(350):
        starts.setdefault(int(weight.count_nonzero()) // 2, done)
        weight.grad = torch.zeros_like(weight)
        stepper.step()
    assert starts == {16: 0, 15: 35, 8: 91, 4: 147, 2: 203, 1: 259}


def test_a_frame_is_a_function_of_the_clock_alone():
    frames = Frames(tuple("abcde"))
    whole = "".join(frames(Clock(t, 280)) for t in range(281))
    assert [whole.index(frame) for frame in "abcde"] == [0, 56, 112, 168, 224]
    assert whole == "".join(sorted(whole)) and frames(Clock(-3, 280)) == "a" and frames(Clock(999, 280)) == "e"


def test_geometric_frames_that_do_not_fit_name_the_first_that_does():
    model = Toy()
    before = weights(model)
    config = NxMConfig("structure-decay", "1:4", settings={"schedule": "geometric"})
    with pytest.raises(ValueError) as error:
        attach(model, torch.optim.SGD(model.parameters(), lr=0.1), config, 10)
    wide, narrow = "set frames=['4:16', '2:8', '1:4']", "set frames=['2:8', '1:4']"
    up, down = (
        next(row for row in str(error.value).splitlines() if f"blocks.0.{name}" in row) for name in ("up", "down")
    )
    assert "first frame that fits is 2:8" in up and narrow in up
    assert "first frame that fits is 4:16" in down and wide in down
    assert all(torch.equal(one, other) for one, other in zip(weights(model), before, strict=True))


def test_the_frames_that_the_error_names_do_work():
    config = NxMConfig("structure-decay", "1:4", settings={"frames": ["2:8", "1:4"]})
    *_, (_, _, deployed) = attached(config, "sgd", 6)
    assert all(NM(1, 4).violations(w) == 0 for w in deployed)


def test_layers_that_no_frame_but_the_last_fits_can_be_skipped_or_trained_through_it():
    config = NxMConfig("structure-decay", "1:8", settings={"schedule": "geometric"}, on_indivisible="skip")
    with pytest.raises(ValueError, match="Nothing is left to prune"):
        attach(Toy(), torch.optim.SGD(Toy().parameters(), lr=0.1), config, 10)


@pytest.mark.parametrize(
    ("pattern", "settings", "says"),
    [
        ("3:8", {}, "power of two; got 3:8.*frames="),
        ("unstructured:0.5", {}, "N:M; for unstructured:0.5 give frames="),
        ("2:4", {"frames": ["3:4"]}, r"must end with the pattern; got \['3:4'\]"),
        ("2:4", {"frames": []}, "must end with the pattern"),
        ("2:4", {"frames": "3:4"}, "is a list of patterns; got '3:4'"),
        ("2:4", {"frames": [4]}, "is a list of patterns"),
    ],
)
def test_frames_that_make_no_ladder_are_an_error(pattern, settings, says):
    with pytest.raises(ValueError, match=says):
        NxMConfig("structure-decay", pattern, settings=settings)
