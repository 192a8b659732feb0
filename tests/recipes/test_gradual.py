"""`gradual`: its densities."""

import pytest
import torch

from nxm_hf import NxMConfig, recipes
from nxm_hf.methods.schedules import Clock
from nxm_hf.patterns import NM, Dense, Unstructured, parse
from tests.support.recipe_runs import STEPS, attached
from tests.support.toy_training import Toy, weights


def densities(config, optimizer="adamw", steps=STEPS):
    """The density of what each step computes with, and at last of what is deployed."""
    run = list(attached(config, optimizer, steps))
    views = [used for used, _, _ in run] + [run[-1][2]]
    return [sum(int(w.count_nonzero()) for w in view) / sum(w.numel() for w in view) for view in views]


@pytest.mark.parametrize("pattern", ["2:4", "1:8", "1:4", "unstructured:0.2", "unstructured:0.9"])
@pytest.mark.parametrize("every", [1, 5, 50])
def test_the_density_of_gradual_never_rises_and_ends_at_the_pattern(pattern, every):
    found = densities(NxMConfig("gradual", pattern, settings={"every": every}))
    assert found[0] == 1.0 and found == sorted(found, reverse=True)
    assert found[-1] == sum(parse(pattern).kept(w.shape) for w in weights(Toy())) / 512


def test_gradual_goes_down_an_n_m_ladder():
    schedule = recipes.gradual(NM(1, 8)).pattern
    frames = [str(schedule(Clock(t, 1000))) for t in range(1001)]
    assert list(dict.fromkeys(frames)) == ["dense", "7:8", "6:8", "5:8", "4:8", "3:8", "2:8", "1:8"]
    assert list(dict.fromkeys(str(recipes.gradual(NM(2, 4)).pattern(Clock(t, 1000))) for t in range(1001))) == [
        "dense",
        "3:4",
        "2:4",
    ]


def test_gradual_follows_the_cubic_of_its_paper():
    """d(t) = d_f + (d_i - d_f)(1 - t/T)^3."""
    schedule = recipes.gradual(Unstructured(0.1), 0.9).pattern
    for t, density in ((0, 0.9), (250, 0.1 + 0.8 * 0.75**3), (500, 0.2), (750, 0.1125)):
        assert schedule(Clock(t, 1000)).density == pytest.approx(density)
    assert schedule(Clock(1000, 1000)) == schedule(Clock(2000, 1000)) == Unstructured(0.1)
    assert recipes.gradual(Unstructured(0.1)).pattern(Clock(0, 1000)) == Dense()


def test_what_gradual_pruned_never_comes_back():
    gone = None
    for used, _, _ in attached(NxMConfig("gradual", "1:4", settings={"every": 3}), "adam"):
        zeros = torch.cat([(w == 0).flatten() for w in used])
        assert gone is None or bool((zeros | ~gone).all())
        gone = zeros
    assert gone.float().mean() == 0.75


def test_a_start_density_below_the_patterns_is_an_error():
    for wrong in (0.4, 1.1):
        with pytest.raises(ValueError, match=f"from 0.5 to 1; got {wrong}"):
            NxMConfig("gradual", settings={"start_density": wrong})
    with pytest.raises(ValueError, match=r"N:M or unstructured patterns; got block:4:0\.5"):
        NxMConfig("gradual", "block:4:0.5")
