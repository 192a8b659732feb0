"""The recipes that are schedules of masked training, each against the same recipe by hand (`tests.support`)."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from nxm_hf import NxMConfig
from tests.support.recipe_runs import STEPS, assert_agrees, attached, attached_weight
from tests.support.references import (
    Algorithm1,
    AlternatingTurns,
    Gradual,
    MaskDecay,
    Staged,
    StructureDecay,
)
from tests.support.toy_training import OPTIMIZERS


def linear(total):
    return lambda t: 1 - t / total


def exponential(total):
    return lambda t: math.exp(-5 * t / total)


CASES = {
    "fix": (NxMConfig("fix"), partial(Algorithm1, v=STEPS // 2)),
    "fix, later and rarely": (
        NxMConfig("fix", settings={"refresh": 3, "grad_scale": 0.3}, settle=8 / STEPS),
        partial(Algorithm1, v=28, r=3, s=0.3),
    ),
    "reset": (NxMConfig("reset", settings={"every": 7}), partial(Algorithm1, z=7)),
    "reset, first": (
        NxMConfig("reset", settings={"every": 7, "reset_moments": "first"}),
        partial(Algorithm1, z=7, forget="first"),
    ),
    "reset, both": (
        NxMConfig("reset", settings={"every": 7, "reset_moments": "both", "refresh": 2}),
        partial(Algorithm1, z=7, r=2, forget="both"),
    ),
    "regularize": (NxMConfig("regularize", settings={"shrink": 0.02}), partial(Algorithm1, beta=0.02)),
    "regularize, 1:4": (NxMConfig("regularize", "1:4"), partial(Algorithm1, pattern="1:4", beta=2e-4)),
    "mask-decay, chain": (NxMConfig("mask-decay"), partial(MaskDecay, gain=linear(STEPS))),
    "mask-decay, ste": (
        NxMConfig("mask-decay", settings={"grad": "ste", "schedule": "exponential"}),
        partial(MaskDecay, gain=exponential(STEPS), grad="ste"),
    ),
    "mask-decay, by rate": (
        NxMConfig("mask-decay", settings={"rate": 0.04, "refresh": 3}),
        partial(MaskDecay, gain=lambda t: max(1 - 0.04 * t, 0), r=3),
    ),
    "mask-decay, exponential by rate": (
        NxMConfig("mask-decay", settings={"rate": 0.1, "schedule": "exponential"}),
        partial(MaskDecay, gain=lambda t: math.exp(-0.1 * t)),
    ),
    "structure-decay": (NxMConfig("structure-decay"), partial(StructureDecay, ladder=["3:4", "2:4"], total=STEPS)),
    "structure-decay, 1:8": (
        NxMConfig("structure-decay", "1:8"),
        partial(StructureDecay, ladder=["7:8", "4:8", "2:8", "1:8"], total=STEPS),
    ),
    "structure-decay, own": (
        NxMConfig("structure-decay", settings={"frames": ["7:8", "4:8", "2:4"]}),
        partial(StructureDecay, ladder=["7:8", "4:8", "2:4"], total=STEPS),
    ),
    "gradual": (NxMConfig("gradual", settings={"every": 4}), partial(Gradual, total=STEPS, every=4)),
    "gradual, unstructured": (
        NxMConfig("gradual", "unstructured:0.3", settings={"every": 5, "start_density": 0.8}),
        partial(Gradual, total=STEPS, every=5, start=0.8, pattern="unstructured:0.3"),
    ),
    "gradual, 1:8": (
        NxMConfig("gradual", "1:8", settings={"every": 3}),
        partial(Gradual, total=STEPS, every=3, pattern="1:8"),
    ),
    "acdc, four turns": (
        NxMConfig("acdc", settings={"period": 0.25}),
        partial(AlternatingTurns, sparse_steps={*range(10, 19), *range(28, 37)}),
    ),
    "acdc, three turns": (
        NxMConfig("acdc", "unstructured:0.4", settings={"period": 1 / 3}),
        partial(AlternatingTurns, sparse_steps=set(range(25, 37)), pattern="unstructured:0.4"),
    ),
}

FIRST = {config.recipe: case for case, (config, _) in reversed(CASES.items())}.values()
# The first case of each recipe under every optimizer, its other cases under one that is adaptive and one that is not.
GRID = [(case, optimizer) for case in CASES for optimizer in (OPTIMIZERS if case in FIRST else ("momentum", "adamw"))]


@pytest.mark.parametrize(("case", "optimizer"), GRID)
def test_a_recipe_is_what_it_is_by_hand(case, optimizer):
    # As printed, FIX zeroes the pruned after step v; we do as the mask freezes, before it. Nothing computes with them.
    assert_agrees(*CASES[case], optimizer, but=("trained",) if case.startswith("fix") else ())


WINDOW = 18  # of 36 steps between a quarter dense and a quarter frozen
STAGED = {
    "fix": ({}, Algorithm1),
    "reset": ({"every": 7, "reset_moments": "both"}, partial(Algorithm1, z=7, forget="both")),
    "regularize": ({"shrink": 0.02}, partial(Algorithm1, beta=0.02)),
    "mask-decay": ({}, partial(MaskDecay, gain=linear(WINDOW))),
    "structure-decay": ({}, partial(StructureDecay, ladder=["3:4", "2:4"], total=WINDOW)),
    "gradual": ({"every": 4}, partial(Gradual, total=WINDOW, every=4)),
    "acdc": ({"period": 0.5}, partial(AlternatingTurns, sparse_steps=set(range(10, 19)))),
}


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
@pytest.mark.parametrize("recipe", STAGED)
def test_warmup_and_settle_go_around_any_recipe(recipe, optimizer):
    settings, law = STAGED[recipe]
    config = NxMConfig(recipe, settings=settings, warmup=0.25, settle=0.25)
    # FIX freezes the mask of the weights after step v - 1.
    assert_agrees(config, partial(Staged, law=law, a=9, e=26 if recipe == "fix" else 27), optimizer)


@pytest.mark.parametrize("case", CASES)
def test_the_masks_of_the_comparison_move(case):
    """The agreement above would be empty if no mask ever changed."""
    zeros = [deployed[0] == 0 for _, _, deployed in attached(CASES[case][0], "adamw")]
    assert any(not torch.equal(zeros[0], later) for later in zeros)


def test_the_vector_of_3_2_by_recipe():
    """One SGD step with lr .1: w = [.8, -.3, .5, .1], g = [.2, -.4, .1, .3]."""
    expected = {
        ("regularize", "shrink", 2e-4): [0.78, -0.259948, 0.49, 0.069986],
        ("reset", "every", 1): [0.78, 0.0, 0.49, 0.0],
        ("mask-decay", "grad", "ste"): [0.78, -0.26, 0.49, 0.07],
    }
    for (recipe, setting, value), after in expected.items():
        weight = nn.Parameter(torch.tensor([[0.8, -0.3, 0.5, 0.1]], dtype=torch.float64))
        stepper = torch.optim.SGD([weight], lr=0.1)
        engine = attached_weight(weight, stepper, recipe, 10, settings={setting: value})
        weight.grad = torch.tensor([[0.2, -0.4, 0.1, 0.3]], dtype=torch.float64)
        stepper.step()
        ((_, dense),) = engine.trained_weights()
        torch.testing.assert_close(dense, torch.tensor([after], dtype=torch.float64), rtol=0, atol=1e-12)
