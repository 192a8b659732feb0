"""`set` and `rigl`: drop, grow and pass over that step; against plain loops (`tests.support`) and the worked vector."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification

from nxm_hf import NxMConfig, attach, recipes
from nxm_hf.methods import Rewiring
from nxm_hf.methods.schedules import Clock
from nxm_hf.patterns import NM, Unstructured, parse
from tests.support.recipe_runs import assert_agrees
from tests.support.references import RewiringReference, Staged, rewired
from tests.support.toy_training import OPTIMIZERS, Toy, has_negative_zeros, loss_at, short, train, weights

STEPS = 36
OVER_OPTIMIZERS = pytest.mark.parametrize("optimizer", OPTIMIZERS)
GROWTH = {"set": "random", "rigl": "gradient"}
EACH = pytest.mark.parametrize("recipe", GROWTH)
SLOTS = {"sgd": [], "momentum": ["momentum_buffer"], "adam": ["exp_avg", "exp_avg_sq"]}
SLOTS["adamw"] = SLOTS["adam"]


BY_HAND = {
    "2:4": {"every": 4},
    "1:8": {"every": 5, "fraction": 0.6, "schedule": "linear"},
    "unstructured:0.3": {"every": 3, "fraction": 0.5},
}
# Every pair of a pattern, an optimizer and a recipe, in half of all combinations: recipes take turns.
GRID = [
    (pattern, optimizer, list(GROWTH)[(row + column) % 2])
    for row, pattern in enumerate(BY_HAND)
    for column, optimizer in enumerate(OPTIMIZERS)
]


@pytest.mark.parametrize(("pattern", "optimizer", "recipe"), GRID)
def test_rewiring_is_what_it_is_by_hand(pattern, optimizer, recipe):
    settings = BY_HAND[pattern]
    law = partial(RewiringReference, grow=GROWTH[recipe], total=STEPS, pattern=pattern, **settings)
    assert_agrees(NxMConfig(recipe, pattern, settings=settings), law, optimizer)


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
@EACH
def test_warmup_and_settle_go_around_rewiring(recipe, optimizer):
    law = partial(RewiringReference, grow=GROWTH[recipe], total=18, every=4)
    config = NxMConfig(recipe, settings={"every": 4}, warmup=0.25, settle=0.25)
    assert_agrees(config, partial(Staged, law=law, a=9, e=27), optimizer)


class Step:
    """A step that masks gradients itself and leaves zeros, or does neither."""

    def __init__(self, does):
        self.mask_gradient = self.leaves_zeros = lambda mask: does


@pytest.mark.parametrize("step", [None, Step(False), Step(True)], ids=["unknown", "plain", "masking"])
@EACH
def test_what_the_step_does_not_mask_the_method_masks(recipe, step):
    """Moments of pruned entries are cleared before these can grow, so that no weight tells."""
    method, weight = NxMConfig(recipe).method(NM(2, 4)).method, torch.randn(4, 8)
    state = method.init(weight, Clock(0, 100))
    pruned = ~state["mask"]
    gradient = weight.grad = torch.randn(4, 8)
    before = gradient.clone()
    method.before_step(weight, state, Clock(1, 100, weight_step=step))
    leaves = step is not None and step.leaves_zeros(None)
    assert torch.equal(gradient, before if leaves else torch.where(pruned, 0.0, before))
    weight += 1.0
    method.after_step(weight, state, Clock(2, 100, since=1, weight_step=step))
    assert torch.equal(weight[pruned], torch.full((16,), 1.0 if leaves else 0.0)) and (weight[~pruned] != 0).all()


@EACH
def test_finish_prunes_what_was_written_into_pruned_weights_and_says_before_whether_it_would(recipe):
    method, weight = NxMConfig(recipe).method(NM(2, 4)).method, torch.randn(4, 8)
    state = method.init(weight, Clock(0, 4))
    sparse = weight.clone()
    assert method.is_finished(weight, state, Clock(4, 4))
    weight[~state["mask"]] = 1.0
    assert not method.is_finished(weight, state, Clock(4, 4))
    assert torch.equal(method.finish(weight, state, Clock(4, 4)), state["mask"]) and torch.equal(weight, sparse)
    other = method.init(torch.randn(4, 8), Clock(0, 4))
    assert not {value.data_ptr() for value in state.values()} & {value.data_ptr() for value in other.values()}


# The worked vector


W = [0.9, -0.1, 0.3, -0.5, 0.0, 0.0, 0.0, 0.0]
G = [0.1, 0.9, 0.2, 0.1, 0.3, 0.8, 0.05, 0.4]


def rigged(weight, mask, gradient, pattern, fraction, grow="gradient", step=0, total=100):
    """One rewiring by the method itself, of a mask that is given."""
    method = Rewiring(pattern, grow, every=1, fraction=fraction)
    weight, state = weight.clone(), {"mask": mask.clone()}
    weight.grad = gradient.clone()
    clock = Clock(step, total, since=step)
    method.before_step(weight, state, clock)
    assert weight.grad is None, "the optimizer passes over it"
    method.after_step(weight, state, Clock(step + 1, total))
    return weight, state


def test_rigl_on_its_vector():
    """m = 11110000, half of it dropped: {0, 3} stay, and the largest |g| of the rest are 1 and 5."""
    mask = torch.tensor([[True] * 4 + [False] * 4])
    weight, state = rigged(torch.tensor([W]), mask, torch.tensor([G]), Unstructured(0.5), 0.5)
    assert state["mask"].int().tolist() == [[1, 1, 0, 1, 0, 1, 0, 0]]
    assert torch.equal(weight, torch.tensor([[0.9, -0.1, 0, -0.5, 0, 0, 0, 0]])), "1 is dropped and comes straight back"
    assert not has_negative_zeros(weight) and state["moved"].tolist() == [1, 1, 4]


def test_by_hand_it_is_the_same_vector():
    mask = torch.tensor([[True] * 4 + [False] * 4])
    found = rewired(torch.tensor([W]), mask, torch.tensor([G]), 0.5, Unstructured(0.5))
    assert found.int().tolist() == [[1, 1, 0, 1, 0, 1, 0, 0]]


def test_inside_groups_each_grows_as_many_as_it_lost():
    """2:4: entries 1 and 2 of 0.1 and 0.3 are the smallest of four; each group fills up from its own gradients."""
    mask = torch.tensor([[True, True, False, False, True, True, False, False]])
    weight = torch.tensor([[0.1, 0.2, 0.0, 0.0, 0.9, 0.8, 0.0, 0.0]])
    gradient = torch.tensor([[0.5, 0.1, 0.3, 0.9, 9.0, 9.0, 9.0, 8.0]])
    after, state = rigged(weight, mask, gradient, NM(2, 4), 0.5)
    assert state["mask"].int().tolist() == [[1, 0, 0, 1, 1, 1, 0, 0]]
    assert torch.equal(after, torch.tensor([[0.1, 0.0, 0.0, 0.0, 0.9, 0.8, 0.0, 0.0]]))


PATTERNS = ["2:4", "1:8", "3:4", "unstructured:0.37", "2:4-transposable", "1:4-transposable", "block:4:0.5"]


@given(
    st.sampled_from(PATTERNS), st.floats(0, 1), st.sampled_from(["gradient", "random"]), st.integers(0, 99), st.data()
)
def test_the_number_of_kept_weights_never_changes_and_what_was_not_dropped_stays(text, fraction, grow, step, data):
    pattern = parse(text)
    noise = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    weight, gradient = torch.randn(8, 16, generator=noise), torch.randn(8, 16, generator=noise)
    mask = pattern.mask(weight.abs())
    weight *= mask
    after, state = rigged(weight, mask, gradient, pattern, fraction, grow, step)
    kept = pattern.kept(weight.shape)
    assert int(state["mask"].count_nonzero()) == kept and pattern.violations(state["mask"]) == 0
    alpha = Rewiring(pattern, grow, 1, fraction)._fraction(Clock(step, 100))
    largest = weight.abs().flatten().argsort(descending=True)[: kept - int(alpha * kept)]
    assert state["mask"].flatten()[largest].all()
    assert torch.equal(after, weight * state["mask"]), "new ones start at zero, all others are as they were"


def test_no_growth_pushes_out_what_was_not_dropped():
    """In a transposable tile masks trade rows and columns, and three gradients are as much as one that stays."""
    weight = torch.zeros(4, 4)
    weight[0, 3], weight[1, 1], weight[2, 0], weight[3, 2] = 4.0, 3.0, 0.2, 0.1
    gradient = torch.tensor([[0, 0, 1, 0], [1, 1, 1, 0], [0, 1, 0, 0], [0, 1, 0, 1]]).float()
    _, state = rigged(weight, weight != 0, gradient, parse("1:4-transposable"), 0.5)
    assert state["mask"][0, 3] and state["mask"][1, 1]


@EACH
@pytest.mark.parametrize("pattern", PATTERNS)
def test_all_may_be_dropped_at_once(recipe, pattern):
    """fraction=1 at the first step leaves none; growth then chooses all."""
    model = Toy()
    stepper = torch.optim.SGD(model.parameters(), lr=0.1)
    config = NxMConfig(recipe, pattern, settings={"every": 1, "fraction": 1.0})
    engine = attach(model, stepper, config, 4)
    for _ in train(model, stepper, 0, 4):
        pass
    for mask in masks_of(engine):
        assert int(mask.count_nonzero()) == parse(pattern).kept(mask.shape)
    engine.finish()


# How much is dropped, and when


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_share_that_is_dropped_falls_from_fraction_to_zero_and_is_half_of_it_half_way(schedule):
    """algorithms.md 7.1: alpha .3 and T = 25 000: .15 at 12 500 by both; 1.2e-5 and 1.2e-3 at 24 900."""
    method = recipes.rigl(NM(2, 4), schedule=schedule)
    shares = {t: method._fraction(Clock(t, 25_000)) for t in (0, 12_500, 24_900, 25_000)}
    assert shares[0] == 0.3 and shares[25_000] == pytest.approx(0, abs=1e-15)
    assert shares[12_500] == pytest.approx(0.15)
    assert shares[24_900] == pytest.approx({"cosine": 1.2e-5, "linear": 1.2e-3}[schedule], rel=0.02)
    falling = [method._fraction(Clock(t, 100)) for t in range(101)]
    assert falling == sorted(falling, reverse=True)


def masks_of(engine):
    return [mask.clone() for name, mask in engine.state_dict().items() if name.endswith("/mask")]


@EACH
@pytest.mark.parametrize("every", [1, 3, 5])
def test_it_rewires_at_each_multiple_of_every_counted_from_one(recipe, every):
    model = Toy()
    stepper = torch.optim.SGD(model.parameters(), lr=0.05)
    engine = attach(model, stepper, NxMConfig(recipe, settings={"every": every, "fraction": 0.9}), 60)
    before, passed_over = weights(model), []
    for done in train(model, stepper, 0, 20):
        now = weights(model)
        stay = [(new != 0) & (old != 0) for new, old in zip(now, before, strict=True)]
        # What was neither dropped nor grown did not move; a step that trains moves it.
        if all(torch.equal(new[both], old[both]) for new, old, both in zip(now, before, stay, strict=True)):
            passed_over.append(done)
        before = now
    assert passed_over == list(range(every, 21, every)) and engine.step == 20


@EACH
def test_the_masks_move(recipe):
    model = Toy()
    stepper = torch.optim.SGD(model.parameters(), lr=0.05)
    engine = attach(model, stepper, NxMConfig(recipe, settings={"every": 2}), 20)
    before = masks_of(engine)
    for _ in train(model, stepper, 0, 2):
        pass
    for old, new in zip(before, masks_of(engine), strict=True):
        assert not torch.equal(old, new) and old.count_nonzero() == new.count_nonzero()
    came, left, kept = (int(engine.state_dict()["blocks.0.up/moved"][i]) for i in range(3))
    assert came == left > 0 and kept == 64


@EACH
def test_a_fraction_of_zero_never_rewires_but_passes_over_those_steps(recipe):
    model = Toy()
    stepper = torch.optim.SGD(model.parameters(), lr=0.05)
    engine = attach(model, stepper, NxMConfig(recipe, settings={"every": 2, "fraction": 0}), 12)
    before = masks_of(engine)
    for _ in train(model, stepper, 0, 12):
        pass
    assert all(torch.equal(old, new) for old, new in zip(before, masks_of(engine), strict=True))


# The step that rewires, and the optimizer


def make_gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=16, pad_token_id=0)
    model = GPT2ForSequenceClassification(config).double().eval()
    pruned = [part for block in model.transformer.h for part in (block.attn.c_attn, block.mlp.c_fc, block.mlp.c_proj)]

    def loss(step):
        ids = torch.arange(1, 9).view(2, 4) + step
        return model(input_ids=ids, labels=torch.tensor([0, 1])).loss

    return model, pruned, loss


def make_toy():
    model = Toy(dtype=torch.float64)
    return model, model.linears, lambda step: loss_at(step, model)


# Every pair of a recipe, an optimizer and a network, in half of all combinations: networks take turns.
NETWORKS = [
    pytest.param(recipe, optimizer, (make_toy, make_gpt2)[(row + column) % 2], id=f"{recipe}-{optimizer}")
    for row, recipe in enumerate(GROWTH)
    for column, optimizer in enumerate(OPTIMIZERS)
]


@pytest.mark.parametrize(("recipe", "optimizer", "make"), NETWORKS)
def test_a_step_that_rewires_edits_what_changed_and_leaves_the_rest_to_the_bit(recipe, optimizer, make):
    """Weights that stay, dropped moments and step counts are as before; grown weights and moments are zero."""
    model, pruned, loss = make()
    stepper = OPTIMIZERS[optimizer](model.parameters())
    engine = attach(model, stepper, NxMConfig(recipe, settings={"every": 4, "fraction": 0.5}, warmup=0.05), 40)
    for step in range(6):  # of which two are dense, so that all weights have moments
        before = [part.weight.detach().clone() for part in pruned]
        kept = [engine.state_dict().get(f"{name}/mask") for name in names_of(model, pruned)]
        moments = [copy_of(stepper.state.get(part.weight, {})) for part in pruned]
        bias = pruned[0].bias.detach().clone()
        stepper.zero_grad()
        loss(step).backward()
        stepper.step()
    assert not torch.equal(bias, pruned[0].bias), "what is not pruned trains"
    grew = 0
    for part, name, old, mask, slots in zip(pruned, names_of(model, pruned), before, kept, moments, strict=True):
        now = engine.state_dict()[f"{name}/mask"]
        mask, now = (m.t() if make is make_gpt2 else m for m in (mask, now))
        grown = now & ~mask
        grew += int(grown.count_nonzero())
        assert torch.equal(part.weight, torch.where(now & mask, old, 0.0))
        state = stepper.state.get(part.weight, {})
        assert state.keys() == slots.keys() and set(SLOTS[optimizer]) <= state.keys()
        for slot, then in slots.items():
            expected = torch.where(grown, 0.0, then) if slot in SLOTS[optimizer] else then
            assert torch.equal(state[slot], expected), slot
            assert slot not in SLOTS[optimizer] or not torch.equal(expected, then)
    assert grew > 0


KIN = {
    "amsgrad": partial(torch.optim.AdamW, amsgrad=True),
    "foreach": partial(torch.optim.AdamW, foreach=True),
    "fused": partial(torch.optim.AdamW, fused=True),
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "adamax": torch.optim.Adamax,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "rmsprop": partial(torch.optim.RMSprop, momentum=0.9, centered=True),
    "nesterov": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize("optimizer", KIN)
def test_whatever_an_optimizer_calls_them_the_moments_of_grown_weights_are_zero(optimizer):
    model = Toy()
    stepper = KIN[optimizer](model.parameters(), lr=0.01)
    engine = attach(model, stepper, NxMConfig("rigl", settings={"every": 3, "fraction": 0.8}, warmup=0.1), 30)
    for _ in train(model, stepper, 0, 5):  # of which three are dense, so that all weights have moments
        pass
    before = masks_of(engine)
    for _ in train(model, stepper, 5, 6):
        pass
    for linear, old, new in zip(model.linears, before, masks_of(engine), strict=True):
        moments = {k: v for k, v in stepper.state[linear.weight].items() if v.shape == linear.weight.shape}
        assert moments and (new & ~old).any()
        assert not [slot for slot, moment in moments.items() if moment[new & ~old].any()]
        assert all(moment[new & old].any() for moment in moments.values())


def names_of(model, modules):
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(module)] for module in modules]


def copy_of(state):
    return {slot: value.clone() for slot, value in state.items() if torch.is_tensor(value)}


@EACH
def test_gradients_that_are_missing_rewire_nothing(recipe):
    weight = nn.Parameter(torch.randn(8, 8))
    method = recipes.make(recipe, NM(2, 4), {"every": 1})
    with torch.no_grad():
        state = method.init(weight, Clock(0, 10))
        mask = state["mask"].clone()
        method.before_step(weight, state, Clock(0, 10, since=0))
    assert weight.grad is None and torch.equal(state["mask"], mask)


@EACH
def test_after_the_last_step_of_the_training_all_steps_train(recipe):
    method, weight = recipes.make(recipe, NM(2, 4), {"every": 1}), nn.Parameter(torch.randn(8, 8))
    with torch.no_grad():
        state = method.init(weight, Clock(0, 3))
        for step, rewires in ((2, True), (3, False), (4, False)):
            weight.grad = torch.ones(8, 8)
            method.before_step(weight, state, Clock(step, 3, since=step))
            assert (weight.grad is None) == rewires


@pytest.mark.parametrize("where", ["weight", "gradient"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_nan_is_an_error_where_connections_are_replaced(pattern, where):
    weight, gradient = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
    mask = parse(pattern).mask(weight.abs())
    weight *= mask
    (weight if where == "weight" else gradient)[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"hold 1 NaN of 128|NaN"):
        rigged(weight, mask, gradient, parse(pattern), 0.5)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30, 65536.0])
def test_rigl_grows_alike_at_any_scale_of_the_gradient(scale):
    mask = torch.tensor([[True] * 4 + [False] * 4])
    _, state = rigged(torch.tensor([W]), mask, torch.tensor([G]) * scale, Unstructured(0.5), 0.5)
    assert int(state["mask"].count_nonzero()) == 4
    assert scale == 0 or state["mask"].int().tolist() == [[1, 1, 0, 1, 0, 1, 0, 0]]


def test_rigl_grows_from_the_accumulated_gradient():
    """Two half batches are the whole one."""
    masks = []
    for parts in (1, 2):
        model = Toy(dtype=torch.float64)
        stepper = torch.optim.SGD(model.parameters(), lr=0.1)
        engine = attach(model, stepper, NxMConfig("rigl", settings={"every": 1}), 4)
        for _ in range(parts):
            (loss_at(0, model) / parts).backward()
        stepper.step()
        masks.append(masks_of(engine))
    assert all(torch.equal(one, two) for one, two in zip(*masks, strict=True))


# Chance


def run_of(seed, noise=0, steps=8):
    model = Toy()
    torch.manual_seed(noise)  # what else is drawn in a training
    stepper = torch.optim.SGD(model.parameters(), lr=0.05)
    engine = attach(model, stepper, NxMConfig("set", settings={"every": 2}), 8, seed=seed)
    found = []
    for _ in train(model, stepper, 0, steps):
        torch.rand(noise)
        found.append(masks_of(engine))
    return found


def alike(ones, others):
    return all(
        torch.equal(a, b) for one, other in zip(ones, others, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_chance_is_the_same_for_the_same_seed_whatever_else_is_drawn():
    assert alike(run_of(seed=3), run_of(seed=3, noise=17))
    assert not alike(run_of(seed=3), run_of(seed=4))


def test_chance_differs_by_layer_and_by_step():
    """Two layers of one weight and one gradient part; so does one layer from step to step."""
    method = recipes.set(Unstructured(0.25), every=1)
    weight = torch.arange(1.0, 65).view(8, 8)

    def grown(step, seed):
        clock = Clock(step, 10_000, since=step, seed=seed)
        trained = weight.clone()
        state = method.init(trained, clock)
        trained.grad = torch.ones_like(trained)
        method.before_step(trained, state, clock)
        return state["mask"]

    masks = [grown(step, seed) for seed in (1, 2) for step in (0, 1, 2)]
    assert all(not torch.equal(a, b) for i, a in enumerate(masks) for b in masks[:i])
    assert torch.equal(grown(1, 2), grown(1, 2))


def test_two_layers_alike_grow_differently():
    model = Toy()
    model.blocks[1].load_state_dict(model.blocks[0].state_dict())
    stepper = torch.optim.SGD(model.parameters(), lr=0.0)
    engine = attach(model, stepper, NxMConfig("set", settings={"every": 1, "fraction": 0.8}), 8)
    first = masks_of(engine)
    for _ in train(model, stepper, 0, 1):
        pass
    then = masks_of(engine)
    assert torch.equal(first[0], first[2]) and not torch.equal(then[0], then[2])


@pytest.mark.parametrize("recipe", recipes.names())
def test_no_recipe_touches_the_global_chance(recipe):
    model = Toy()
    stepper = torch.optim.AdamW(model.parameters(), lr=0.02)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    engine = attach(model, stepper, short(recipe, warmup=0.1), 12)
    for _ in train(model, stepper, 0, 12):
        with engine.deployed():
            pass
    engine.finish()
    assert torch.equal(torch.get_rng_state(), before)


def test_set_grows_evenly():
    """Each place that is free is as likely as any other: 4 of 60 grown, 3000 times, is 200 each."""
    method, counts = recipes.set(Unstructured(8 / 64), every=1, fraction=0.5), torch.zeros(64)
    weight = torch.zeros(8, 8)
    weight.view(-1)[:8] = torch.arange(8.0, 0, -1)
    for seed in range(3000):
        trained, clock = weight.clone(), Clock(0, 100, since=0, seed=seed)
        state = method.init(trained, clock)
        trained.grad = torch.zeros_like(trained)
        method.before_step(trained, state, clock)
        counts += state["mask"].flatten()
    assert (counts[:4] == 3000).all() and counts.sum() == 8 * 3000
    deviation = (counts[4:] - 200) / (200 * (1 - 4 / 60)) ** 0.5
    assert deviation.abs().max() < 4.5


# Settings


@EACH
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"fraction": 1.2}, "is a share, 0 to 1; got 1.2. Write fraction=0.3"),
        ({"fraction": -0.1}, "fraction of .* at least 0; got -0.1"),
        ({"every": 0}, "at least 1; got 0"),
        ({"schedule": "constant"}, "'cosine', 'linear'; got 'constant'"),
    ],
)
def test_settings_that_make_no_sense_are_an_error(recipe, settings, says):
    with pytest.raises(ValueError, match=says):
        NxMConfig(recipe, settings=settings)


def test_the_two_recipes_differ_in_where_they_grow_alone():
    assert recipes.set(NM(2, 4)) == Rewiring(NM(2, 4), "random", 100, 0.3, "cosine")
    assert recipes.rigl(NM(2, 4)) == Rewiring(NM(2, 4))
    assert recipes.rigl(NM(2, 4), 7, 0.1, "linear") == Rewiring(NM(2, 4), "gradient", 7, 0.1, "linear")
