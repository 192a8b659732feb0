"""The recipes that are schedules of masked training: fix, reset, regularize, the two decays, gradual and acdc.

Each against the same recipe by hand (see `tests.support`), with every worked vector, and what each promises on its way.
"""

import math
from functools import partial

import pytest
import torch
from torch import nn
from transformers.optimization import Adafactor

from nxm_hf import NxMConfig, attach, recipes
from nxm_hf.methods import Masked
from nxm_hf.methods.schedules import Clock, Constant, Decay, Frames
from nxm_hf.patterns import NM, Dense, Unstructured, parse
from tests.support.references import (
    Algorithm1,
    AlternatingTurns,
    Gradual,
    MaskDecay,
    Staged,
    StructureDecay,
    by_hand,
    top,
)
from tests.support.toy_training import OPTIMIZERS, Toy, has_negative_zeros, loss_at, same, short, train, weights

STEPS = 36
CLOSE = dict(rtol=1e-7, atol=1e-10)  # of fp64, where the same sums are done in another order
OVER_OPTIMIZERS = pytest.mark.parametrize("optimizer", OPTIMIZERS)


def attached(config, optimizer, steps=STEPS):
    """Train with an engine. Yields what each step computed with, the weights after it, and what would be shipped."""
    model = Toy(dtype=torch.float64)
    stepper = OPTIMIZERS[optimizer](model.parameters())
    engine = attach(model, stepper, config, total_steps=steps)
    used = weights(model)
    for _ in train(model, stepper, 0, steps):
        trained = [weight.detach().clone() for _, weight in engine.trained_weights()]
        with engine.deployed():
            shipped = weights(model)
        yield used, trained, shipped
        used = weights(model)


VIEWS = ("used", "trained", "shipped")


def assert_agrees(config, law, optimizer, but=()):
    """In all views, `but` those, weights and their zeros are the same at every step."""
    runs = attached(config, optimizer), by_hand(optimizer, law, STEPS)
    for step, (ours, by_our_hand) in enumerate(zip(*runs, strict=True)):
        for view, got, expected in zip(VIEWS, ours, by_our_hand, strict=True):
            if view in but:
                continue
            for one, other in zip(got, expected, strict=True):
                assert torch.equal(one == 0, other == 0), f"other zeros in what is {view} at step {step + 1}"
                torch.testing.assert_close(one, other, **CLOSE)
    assert step == STEPS - 1


def linear(total):
    return lambda t: 1 - t / total


def exponential(total):
    return lambda t: math.exp(-5 * t / total)


CASES = {
    "fix": (NxMConfig("fix"), partial(Algorithm1, v=STEPS // 2 + 1)),
    "fix, later and rarely": (
        NxMConfig("fix", settings={"refresh": 3, "grad_scale": 0.3}, settle=0.25),
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


@OVER_OPTIMIZERS
@pytest.mark.parametrize("case", CASES)
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
    assert_agrees(config, partial(Staged, law=law, a=9, e=27), optimizer)


@pytest.mark.parametrize("case", CASES)
def test_the_masks_of_the_comparison_move(case):
    """The agreement above would be empty if no mask ever changed."""
    zeros = [shipped[0] == 0 for _, _, shipped in attached(CASES[case][0], "adamw")]
    assert any(not torch.equal(zeros[0], later) for later in zeros)


# fix, reset, regularize


def test_fix_settles_half_way_unless_told_otherwise():
    assert NxMConfig("fix").phases == (0.0, 0.5)
    assert NxMConfig("fix", settle=0.2).settle == 0.2


def test_the_mask_of_fix_moves_until_v_and_never_after():
    zeros = [torch.cat([w.flatten() == 0 for w in used]) for used, _, _ in attached(NxMConfig("fix"), "adam")]
    moves = [t for t in range(2, STEPS + 1) if not torch.equal(zeros[t - 1], zeros[t - 2])]
    assert moves and max(moves) == STEPS // 2 + 1, "the last mask is of the weights after step v - 1"


def resets(every, total=20):
    """The steps, counted from 1, after which every pruned weight is zero."""
    config = NxMConfig("reset", settings={"every": every})
    found = []
    for t, (used, trained, _) in enumerate(attached(config, "momentum", total), 1):
        if all(not w[u == 0].any() for u, w in zip(used, trained, strict=True)):
            found.append(t)
    return found


@pytest.mark.parametrize("every", [1, 3, 7])
def test_reset_is_due_where_t_is_a_multiple_of_z_with_t_from_one(every):
    assert resets(every) == list(range(every, 21, every))


def test_reset_of_longer_than_the_training_is_ste():
    runs = [attached(config, "adamw") for config in (NxMConfig("reset"), NxMConfig("ste"))]
    for ours, of_ste in zip(*runs, strict=True):
        assert all(same(one, two) for one, two in zip(ours, of_ste, strict=True))


@OVER_OPTIMIZERS
def test_reset_at_every_step_never_rewires(optimizer):
    """Paper: z = 1 is no rewiring, as the pruned begin each step at zero."""
    zeros = [u[0] == 0 for u, _, _ in attached(NxMConfig("reset", settings={"every": 1}), optimizer)]
    assert sum(not torch.equal(zeros[0], later) for later in zeros) == 0


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_momentum_grows_pruned_weights_back_only_when_it_is_kept(optimizer):
    """algorithms.md 3.3: one step after a reset, with no gradient at all, only the old momentum moves them."""
    grown = {}
    for moments in ("none", "first", "both"):
        weight = nn.Parameter(torch.tensor([[0.8, -0.3, 0.5, 0.1]], dtype=torch.float64))
        makers = {"momentum": partial(torch.optim.SGD, momentum=0.9), "adam": torch.optim.Adam}
        stepper = makers[optimizer]([weight], lr=0.01)
        engine = one_weight(weight, stepper, "reset", 9, settings={"every": 3, "reset_moments": moments})
        for t in range(1, 5):
            weight.grad = torch.full_like(weight, 0.2 if t < 4 else 0.0)
            stepper.step()
            ((_, dense),) = engine.trained_weights()
            if t == 3:
                assert not dense[0, [1, 3]].any(), "reset"
        grown[moments] = float(dense[0, [1, 3]].abs().min())
    assert grown["none"] > 0 and grown["first"] == grown["both"] == 0


def one_weight(weight, stepper, recipe, total, pattern="2:4", **words):
    """An engine on a single weight, in a model around it."""
    model = Toy()
    model.blocks[0].up.weight = weight
    return attach(model, stepper, NxMConfig(recipe, pattern, include=["blocks.0.up"], **words), total)


@pytest.mark.parametrize("moments", ["none", "first", "both"])
def test_reset_clears_the_moments_that_it_names_of_pruned_weights_alone(moments):
    model = Toy()
    stepper = torch.optim.AdamW(model.parameters(), lr=0.01)
    engine = attach(model, stepper, NxMConfig("reset", settings={"every": 4, "reset_moments": moments}), 8)
    for _ in train(model, stepper, 0, 3):
        pass
    masks = [used != 0 for used in weights(model)]
    for _ in train(model, stepper, 3, 4):
        pass
    for linear_, mask in zip(model.linears, masks, strict=True):
        state = stepper.state[linear_.weight]
        for slot, cleared in (("exp_avg", moments != "none"), ("exp_avg_sq", moments == "both")):
            assert bool((state[slot][~mask] == 0).all()) == cleared
            assert (state[slot][mask] != 0).all()
    assert engine.step == 4


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
        engine = one_weight(weight, stepper, recipe, 10, settings={setting: value})
        weight.grad = torch.tensor([[0.2, -0.4, 0.1, 0.3]], dtype=torch.float64)
        stepper.step()
        ((_, dense),) = engine.trained_weights()
        torch.testing.assert_close(dense, torch.tensor([after], dtype=torch.float64), rtol=0, atol=1e-12)


def test_regularize_shrinks_by_the_same_part_at_any_learning_rate():
    """It is outside the optimizer: with lr = 0 pruned weights are (1 - shrink)^t of what they were."""
    model = Toy(dtype=torch.float64)
    start = weights(model)
    stepper = torch.optim.SGD(model.parameters(), lr=0.0)
    engine = attach(model, stepper, NxMConfig("regularize", settings={"shrink": 0.1}), 5)
    for _ in train(model, stepper, 0, 5):
        pass
    for (_, dense), before in zip(engine.trained_weights(), start, strict=True):
        expected = torch.where(top(before.abs(), "2:4"), before, before * 0.9**5)
        torch.testing.assert_close(dense, expected)


# mask-decay


DELTAS = {
    ("linear", 8e-4): {0: 1, 100: 0.92, 500: 0.6, 1000: 0.2, 1250: 0, 2000: 0},
    ("exponential", 1e-4): {0: 1, 100: 0.990050, 500: 0.951229, 1000: 0.904837, 1250: 0.882497, 2000: 0.818731},
}


@pytest.mark.parametrize(("schedule", "rate"), DELTAS)
def test_the_gain_of_mask_decay_is_that_of_the_table(schedule, rate):
    gain = recipes.mask_decay(NM(2, 4), schedule, rate).gain
    for t, delta in DELTAS[schedule, rate].items():
        assert gain(Clock(t, 10_000)) == pytest.approx(delta, abs=5e-7)


def test_without_a_rate_the_gain_falls_over_the_steps_of_the_recipe():
    lines, curves = recipes.mask_decay(NM(2, 4)).gain, recipes.mask_decay(NM(2, 4), "exponential").gain
    assert [lines(Clock(t, 4)) for t in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert [curves(Clock(t, 4)) for t in (0, 2, 4)] == pytest.approx([1.0, math.exp(-2.5), math.exp(-5)])


@pytest.mark.parametrize("schedule", ["linear", "exponential"])
@pytest.mark.parametrize("rate", [None, 0.1])
def test_a_gain_is_never_above_one_and_never_rises(schedule, rate):
    """Also before its start, where a resumed run may stand whose warm-up grew with its length."""
    gains = [Decay(schedule, rate)(Clock(t, 20)) for t in range(-5, 25)]
    assert max(gains) == 1.0 and gains == sorted(gains, reverse=True) and min(gains) >= 0


@pytest.mark.parametrize(("grad", "expected"), [("chain", [0.2, -0.24, 0.1, 0.18]), ("ste", [0.2, -0.4, 0.1, 0.3])])
@pytest.mark.parametrize("adaptive", [False, True])
def test_mask_decay_on_its_vector(grad, expected, adaptive):
    """w = [.8, -.3, .5, .1], delta .6; chain under Adam too, as that is what autograd gives."""
    method = recipes.mask_decay(NM(2, 4), "linear", 0.1, grad)
    weight = nn.Parameter(torch.tensor([[0.8, -0.3, 0.5, 0.1]], dtype=torch.float64))
    clock = Clock(4, 100, adaptive=adaptive)
    with torch.no_grad():
        state = method.init(weight, clock)
        torch.testing.assert_close(weight.tolist()[0], [0.8, -0.18, 0.5, 0.06])
        weight.grad = torch.tensor([[0.2, -0.4, 0.1, 0.3]], dtype=torch.float64)
        method.before_step(weight, state, clock)
    torch.testing.assert_close(weight.grad.tolist()[0], expected)
    assert weight.tolist()[0] == [0.8, -0.3, 0.5, 0.1], "the optimizer trains the dense weight"


def test_an_exponential_gain_is_forced_to_zero_by_settle():
    config = NxMConfig("mask-decay", settings={"schedule": "exponential", "rate": 1e-3}, settle=0.25)
    nonzero = [all(w.all() for w in used) for used, _, _ in attached(config, "adamw", 12)]
    assert nonzero == [True] * 9 + [False] * 3


def test_mask_decay_at_gain_zero_is_ste():
    runs = [
        attached(NxMConfig("mask-decay", settings={"rate": 1e6, "grad": "ste"}), "momentum"),
        attached(NxMConfig("ste"), "momentum"),
    ]
    for step, (ours, of_ste) in enumerate(zip(*runs, strict=True)):
        if step == 0:
            assert all(w.all() for w in ours[0]), "its gain at the first step is 1, whatever the rate"
        else:
            assert ours[0][0].shape == of_ste[0][0].shape and NM(2, 4).violations(ours[0][0]) == 0


# structure-decay


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
    one_weight(weight, stepper, "structure-decay", 350, "1:16", warmup=0.1, settle=0.1)
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
    *_, (_, _, shipped) = attached(config, "sgd", 6)
    assert all(NM(1, 4).violations(w) == 0 for w in shipped)


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


# gradual


def densities(config, optimizer="adamw", steps=STEPS):
    """The density of what each step computes with, and at last of what is shipped."""
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


# acdc


def sparse_steps(period, total):
    """Which steps, counted from 1, train a sparse weight; a dense turn begins at what the sparse one left."""
    run = attached(NxMConfig("acdc", settings={"period": period}), "sgd", total)
    dense = NM(2, 4).violations
    return [t for t, (used, trained, _) in enumerate(run, 1) if not dense(used[0]) and not dense(trained[0])]


@pytest.mark.parametrize(
    ("period", "total", "sparse"),
    [
        (0.5, 20, range(11, 21)),  # two turns
        (0.25, 20, [*range(6, 11), *range(16, 21)]),  # four
        (1 / 3, 30, range(21, 31)),  # three: the first is dense, so is the one after it
        (0.2, 20, [*range(9, 13), *range(17, 21)]),  # five: dense, dense, sparse, dense, sparse
        (0.3, 20, [*range(3, 9), *range(15, 21)]),  # three and a bit, which is at the start
        (0.4, 20, range(13, 21)),  # two and a bit
    ],
)
def test_the_turns_of_acdc_are_a_period_long_the_first_dense_and_the_last_sparse(period, total, sparse):
    assert sparse_steps(period, total) == list(sparse)


@pytest.mark.parametrize("total", range(1, 41))
@pytest.mark.parametrize("period", [0.05, 0.07, 0.1, 0.29, 0.3, 1 / 3, 0.5])
def test_whatever_the_length_acdc_begins_dense_and_ends_sparse(period, total):
    pattern = recipes.acdc(NM(2, 4), period).pattern
    turns = [pattern(Clock(t, total)) for t in range(total)]
    assert turns[-1] == NM(2, 4)
    assert turns[0] == Dense() or total == 1
    last = next((i for i, turn in enumerate(reversed(turns)) if turn == Dense()), total)
    assert total == 1 or last == max(math.floor(period * total + 1e-9), 1)


def test_before_its_start_acdc_is_dense():
    """A resumed run may stand there whose warm-up grew with its length."""
    assert {recipes.acdc(NM(2, 4), period).pattern(Clock(t, 20)) for t in range(-30, 1) for period in (0.25, 0.2)} == {
        Dense()
    }


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_acdc_clears_moments_where_its_mask_changed_and_nowhere_else(optimizer):
    model = Toy()
    stepper = OPTIMIZERS[optimizer](model.parameters())
    engine = attach(model, stepper, NxMConfig("acdc", settings={"period": 0.25}), 16)
    slots = {"momentum": ["momentum_buffer"], "adamw": ["exp_avg", "exp_avg_sq"]}[optimizer]
    pruned = [torch.zeros_like(w, dtype=torch.bool) for w in weights(model)]
    for done in train(model, stepper, 0, 15):
        masks = [~mask for name, mask in engine.state_dict().items() if name.endswith("/mask")]
        turned = done in (4, 8, 12)
        for linear_, mask, before in zip(model.linears, masks, pruned, strict=True):
            changed = mask ^ before
            assert bool(changed.any()) == turned
            for slot in slots:
                moment = stepper.state[linear_.weight][slot]
                assert not moment[changed].any()
                assert (moment[~(changed | mask)] != 0).all()
        pruned = masks


@pytest.mark.parametrize("period", [0, -1, 0.6, "long", True])
def test_a_period_that_leaves_no_turns_is_an_error(period):
    with pytest.raises(ValueError, match="period of acdc"):
        NxMConfig("acdc", settings={"period": period})


# What all promise


ALL = ("fix", "reset", "regularize", "mask-decay", "structure-decay", "set", "rigl", "gradual", "acdc")


@pytest.mark.parametrize("window", [{}, {"warmup": 0.25}, {"settle": 0.25}, {"warmup": 0.25, "settle": 0.25}], ids=str)
@pytest.mark.parametrize("recipe", ALL)
def test_what_is_shipped_holds_the_final_pattern_at_any_step(recipe, window):
    """Also in a dense turn of acdc, in frame 1 of structure-decay and before gradual pruned anything."""
    model = Toy()
    stepper = torch.optim.AdamW(model.parameters(), lr=0.02)
    engine = attach(model, stepper, short(recipe, "1:4", **window), total_steps=12)
    for done in range(13):
        shown = weights(model)
        with engine.deployed():
            for weight in weights(model):
                nonzero = int(weight.count_nonzero())
                assert nonzero == weight.numel() // 4 or recipe in ("set", "rigl"), "which grow at zero"
                assert NM(1, 4).violations(weight) == 0 and not has_negative_zeros(weight)
        assert all(torch.equal(one, other) for one, other in zip(shown, weights(model), strict=True))
        if done < 12:
            stepper.zero_grad()
            loss_at(done, model).backward()
            stepper.step()
    engine.finish()
    assert all(NM(1, 4).violations(weight) == 0 for weight in weights(model))


ADAFACTORS = {
    "transformers": lambda model: Adafactor(model.parameters(), lr=1e-2, relative_step=False, scale_parameter=False),
    "torch": lambda model: torch.optim.Adafactor(model.parameters(), lr=1e-2),
}
EDITING = {"set": {}, "rigl": {}, "acdc": {}, "reset": {"reset_moments": "first"}}


@pytest.mark.parametrize("maker", ADAFACTORS)
@pytest.mark.parametrize("recipe", [*ALL, "reset with moments"])
def test_adafactor_is_refused_by_the_recipes_that_edit_moments_and_by_no_other(recipe, maker):
    name, _, more = recipe.partition(" ")
    model = Toy()
    before, stepper = weights(model), ADAFACTORS[maker](model)
    config = short(name, settings=EDITING["reset"] if more else {})
    if more or (name in EDITING and name != "reset"):
        with pytest.raises(ValueError, match=r"moments .* Adafactor keeps none.* Use AdamW or SGD"):
            attach(model, stepper, config, 12)
        assert all(torch.equal(one, other) for one, other in zip(weights(model), before, strict=True))
        return
    engine = attach(model, stepper, config, 12)
    for _ in train(model, stepper, 0, 12):
        pass
    engine.finish()
    assert all(NM(2, 4).violations(weight) == 0 for weight in weights(model))


def test_the_recipes_are_these_schedules():
    pattern = NM(2, 4)
    assert recipes.fix(pattern) == recipes.ste(pattern)
    assert recipes.regularize(pattern, shrink=0) == recipes.ste(pattern)
    assert recipes.regularize(pattern) == Masked(Constant(pattern), shrink=Constant(2e-4))
    assert recipes.mask_decay(pattern) == Masked(Constant(pattern), gain=Decay("linear"), chain=True)
    assert recipes.structure_decay(pattern).pattern == Frames((NM(3, 4), pattern))
    assert recipes.structure_decay(pattern, frames=["2:4"]).pattern(Clock(0, 1)) == pattern
