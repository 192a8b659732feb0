"""The step as one weight sees it: passes over memory are saved only where every bit stays the same."""

import copy

import pytest
import torch
import transformers

from nxm_hf import AdamW, NxMConfig, attach
from nxm_hf.methods import Masked
from nxm_hf.methods.schedules import ALWAYS, NEVER, Constant, Decay, Every
from nxm_hf.solvers import base
from tests.support.method_runs import TWO_FOUR, After
from tests.support.models import make_batches, make_model
from tests.support.step_views import Blind, Noting
from tests.support.toy_training import Toy, adamw, has_negative_zeros, same, train, weights

STEPS = 8
FROZEN = Masked(TWO_FOUR, refresh=NEVER, freeze=ALWAYS)
LATE = Masked(TWO_FOUR, refresh=Every(100), freeze=After(3))
ADAFACTOR = transformers.optimization.Adafactor
OPTIMIZERS = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, weight_decay=0.1),
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
    "nesterov": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.02, weight_decay=0.1),
    "adamw": lambda m: adamw(m, amsgrad=True),
    "adamw-fused": lambda m: adamw(m, fused=True),
    "adamw-foreach": lambda m: adamw(m, foreach=True),
    "adafactor": lambda m: ADAFACTOR(m.parameters(), lr=0.02, relative_step=False, beta1=0.9, weight_decay=0.1),
    "adafactor-torch": lambda m: torch.optim.Adafactor(m.parameters(), lr=0.02),
    "rmsprop": lambda m: torch.optim.RMSprop(m.parameters(), lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda m: torch.optim.Adagrad(m.parameters(), lr=0.02),
    "adamw-negative": lambda m: torch.optim.AdamW(m.parameters(), lr=1.5, weight_decay=0.9),
}
if hasattr(torch.optim, "Muon"):
    OPTIMIZERS["muon"] = lambda m: torch.optim.Muon([p for p in m.parameters() if p.ndim == 2], lr=0.02)
MOVING = {"muon", "adamw-negative"}
each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


class Pair:
    """One training with all that is known of its steps, and the same one that knows nothing."""

    def __init__(self, method=FROZEN, make=adamw, total=STEPS, **window):
        self.noting = Noting(method, [])
        self.make, self.total, self.window = make, total, window
        self.models, self.optimizers, self.engines = [], [], []
        for recipe in (self.noting, Blind(method)):
            self.models.append(Toy())
            self.optimizers.append(make(self.models[-1]))
            config = NxMConfig(recipe=recipe, **window)
            self.engines.append(attach(self.models[-1], self.optimizers[-1], config, total_steps=total))
        self.step = 0

    def train(self, until=STEPS):
        """Train both, and compare all bits after each step."""
        runs = [train(model, o, self.step, until) for model, o in zip(self.models, self.optimizers, strict=True)]
        for self.step, _ in zip(*runs, strict=True):
            self.compare()
        return self

    def compare(self):
        assert same(*(model.state_dict() for model in self.models))
        states = [optimizer.state_dict()["state"] for optimizer in self.optimizers]
        for number, state in states[0].items():
            tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
            assert same(tensors, {name: states[1][number][name] for name in tensors}), number
        assert same(*({k: v for k, v in e.state_dict().items() if k != "header"} for e in self.engines))

    def leaves(self, step):
        """Whether the answer after this step was that zeros were left, for all weights alike."""
        (answer,) = self.noting.answers("leaves_zeros", step)
        return answer

    def each(self, act):
        for model, optimizer, engine in zip(self.models, self.optimizers, self.engines, strict=True):
            with torch.no_grad():
                act(model, optimizer, engine)


@each_optimizer
def test_a_mask_frozen_from_the_start_needs_one_pass_and_gives_the_same_bits(name):
    pair = Pair(make=OPTIMIZERS[name]).train()
    assert [pair.leaves(step) for step in range(1, STEPS + 1)] == [False] + [name not in MOVING] * (STEPS - 1)
    assert not any(has_negative_zeros(weight) for weight in weights(pair.models[0]))


@each_optimizer
def test_a_mask_frozen_in_the_middle_gives_the_same_bits_whatever_the_moments_are(name):
    """Only an optimizer without moments leaves the zeros."""
    pair = Pair(LATE, OPTIMIZERS[name]).train()
    assert pair.leaves(STEPS) == (name in ("sgd", "adafactor-torch"))


@each_optimizer
def test_a_resumed_training_looks_once_and_goes_on(name):
    pair = Pair(make=OPTIMIZERS[name]).train(until=4)
    saved = [
        (copy.deepcopy(o.state_dict()), e.state_dict()) for o, e in zip(pair.optimizers, pair.engines, strict=True)
    ]
    again = Pair(make=OPTIMIZERS[name])
    for i in range(2):
        again.models[i].load_state_dict(pair.models[i].state_dict())
        again.optimizers[i].load_state_dict(saved[i][0])
        again.engines[i].load_state_dict(saved[i][1])
    again.step = 4
    again.train()
    assert [again.leaves(step) for step in (5, 6)] == [False, name not in MOVING]
    assert same(again.models[0].state_dict(), pair.train().models[0].state_dict())


# Moments at a freeze


FOR_GOOD = Masked(TWO_FOUR, refresh=NEVER, freeze=After(3))
WITHOUT = ("sgd", "adafactor-torch")  # moments of single entries
UNTOUCHED = ("muon", "adafactor")  # their kept entries depend on moments of pruned ones, or may
FREEZES = {
    "asp": dict(recipe="asp", warmup=0.25),
    "asp-fisher": dict(recipe="asp", settings={"scores": "fisher"}, warmup=0.25),
    "asp-both": dict(recipe="asp", warmup=0.25, settle=0.25),
    "ste": dict(recipe="ste", settle=0.5),
    "fix": dict(recipe="fix"),
    "admm": dict(recipe="admm", settings={"rho": 0.02, "steps": 2}, settle=0.5),
    "transposable": dict(recipe="ste", pattern="2:4-transposable", settle=0.5),
    "rigl": dict(recipe="rigl", settings={"every": 2}, settle=0.5),
}


def tracked(model, optimizer):
    """Copy each pruned weight, and the moments of each entry of it."""
    states = [optimizer.state[linear.weight] for linear in model.linears]
    shapes = [linear.weight.shape for linear in model.linears]
    moments = [
        {name: value.clone() for name, value in state.items() if getattr(value, "shape", None) == shape}
        for state, shape in zip(states, shapes, strict=True)
    ]
    return weights(model), moments


def ends(config, make=adamw, careful=False, resume=None, until=STEPS):
    """Train, and return weights, moments, and what a resumed run needs. A careful run knows nothing of its steps."""
    model = Toy(seed=int(resume is not None))
    optimizer = make(model)
    if careful:
        optimizer.register_step_post_hook(lambda *_: None)  # it might do anything
    engine = attach(model, optimizer, config, total_steps=STEPS)
    if resume is not None:
        for part, state in zip((model, optimizer, engine), resume, strict=True):
            part.load_state_dict(copy.deepcopy(state))
    for _ in train(model, optimizer, engine.step, until):
        pass
    return (*tracked(model, optimizer), copy.deepcopy([x.state_dict() for x in (model, optimizer, engine)]))


def same_where_kept(one, other):
    return all(same([x[w != 0]], [y[w != 0]]) for w, x, y in zip(one[0], one[0], other[0], strict=True)) and all(
        mine.keys() == theirs.keys() and all(same([mine[name][w != 0]], [theirs[name][w != 0]]) for name in mine)
        for w, mine, theirs in zip(one[0], one[1], other[1], strict=True)
    )


def pruned_moments(end):
    return torch.cat([value[w == 0] for w, state in zip(end[0], end[1], strict=True) for value in state.values()])


@each_optimizer
def test_a_mask_frozen_for_good_clears_moments_once_and_changes_no_bit_of_a_kept_weight(name):
    pair = Pair(FOR_GOOD, OPTIMIZERS[name])
    runs = [train(model, o, 0, STEPS) for model, o in zip(pair.models, pair.optimizers, strict=True)]
    for pair.step, _ in zip(*runs, strict=True):
        one, other = (tracked(*each) for each in zip(pair.models, pair.optimizers, strict=True))
        assert same(one[0], other[0]) and (pair.step < 3 or same_where_kept(one, other))
    spared = name not in MOVING and name not in UNTOUCHED
    assert [pair.leaves(step) for step in (4, 5, STEPS)] == [False, spared, spared]
    if name in UNTOUCHED:
        pair.compare()
    elif name not in WITHOUT:
        assert not pruned_moments(one).any() and pruned_moments(other).any()


@pytest.mark.parametrize("case", FREEZES)
def test_every_freeze_in_the_middle_of_a_training_clears_moments_of_pruned_entries_alone(case):
    config = NxMConfig(**FREEZES[case])
    one, careful = ends(config), ends(config, careful=True)
    assert same(one[0], careful[0]) and same_where_kept(one, careful)
    assert not pruned_moments(one).any() and pruned_moments(careful).any()


@pytest.mark.parametrize("case", ["acdc", "gradual", "set"])
def test_moments_stay_where_pruned_entries_may_come_back(case):
    settings = {"acdc": {"period": 0.25}, "gradual": {"every": 2, "start_density": 0.75}, "set": {"every": 2}}
    config = NxMConfig(case, settings=settings[case], warmup=0.25)
    one, careful = ends(config, OPTIMIZERS["momentum"]), ends(config, OPTIMIZERS["momentum"], careful=True)
    assert same(one[0], careful[0]) and all(map(same, one[1], careful[1]))


def test_a_kept_weight_that_is_zero_keeps_its_moments_at_a_freeze():
    model = Toy()
    optimizer = adamw(model)
    engine = attach(model, optimizer, NxMConfig("asp", warmup=0.25, settle=0.5), total_steps=STEPS)
    for done in train(model, optimizer, 0, STEPS // 2):
        if done == STEPS // 2 - 1:  # the mask is known, and the next step freezes it anew
            masks = [engine.tensors()[f"{target.name}/mask"] for target in engine.plan.targets]
            for group in optimizer.param_groups:
                group["lr"] = 0.0
            with torch.no_grad():
                for linear in model.linears:
                    linear.weight.zero_()
    for linear, mask in zip(model.linears, masks, strict=True):
        assert not linear.weight.any() and optimizer.state[linear.weight]["exp_avg"][mask].all()


@pytest.mark.parametrize("case", ["fix", "admm", "asp"])
@pytest.mark.parametrize("until", [4, 5, 6])
def test_a_run_resumed_after_its_freeze_ends_in_the_bits_of_the_unbroken_one(case, until):
    config = NxMConfig(**FREEZES[case])
    whole, half = ends(config), ends(config, until=until)
    again = ends(config, resume=half[2])
    assert same(whole[0], again[0]) and all(map(same, whole[1], again[1]))


def test_a_checkpoint_with_moments_of_pruned_entries_resumes_and_keeps_them():
    config = NxMConfig(**FREEZES["fix"])
    whole, half = ends(config), ends(config, careful=True, until=6)
    again = ends(config, resume=half[2])
    assert same(whole[0], again[0]) and same_where_kept(whole, again) and pruned_moments(again).any()


def fill(weight, value):
    weight.masked_fill_(weight == 0, value)


def fill_moments(model, optimizer, engine):
    state = copy.deepcopy(optimizer.state_dict())
    for each in state["state"].values():
        each["exp_avg"].add_(1.0)
    optimizer.load_state_dict(state)


WRITERS = {
    "weights": lambda model, *_: [fill(linear.weight, 0.1) for linear in model.linears],
    "zeros": lambda model, *_: [fill(linear.weight, -0.0) for linear in model.linears],
    "moments": lambda model, o, _: [o.state[linear.weight]["exp_avg"].add_(1.0) for linear in model.linears],
    "other moments": fill_moments,
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_others_write_between_two_steps_is_seen(name):
    pair = Pair().train(until=4)
    assert pair.leaves(4)
    pair.each(WRITERS[name])
    pair.train()
    assert not pair.leaves(5) and pair.leaves(STEPS) == ("moments" not in name)


@pytest.mark.parametrize(("cleared", "found"), [(5, 6), (6, 8), (7, 8), (8, 12), (11, 12)])
def test_moments_that_become_zero_again_are_found_at_looks_that_are_ever_rarer(cleared, found):
    def clear(model, optimizer, engine):
        for linear in model.linears:
            optimizer.state[linear.weight]["exp_avg"].masked_fill_(linear.weight == 0, 0.0)

    pair = Pair(total=14).train(until=4)
    pair.each(WRITERS["moments"])
    pair.train(until=cleared)
    pair.each(clear)
    pair.train(until=14)
    assert [step for step in range(4, 15) if pair.leaves(step)] == [4, *range(found + 1, 15)]


def test_a_look_at_the_deployed_weights_costs_one_step():
    pair = Pair().train(until=4)
    for engine in pair.engines:
        with engine.deployed():
            pass
    pair.train()
    assert [pair.leaves(step) for step in range(4, STEPS + 1)] == [True, False, True, True, True]


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_pruned_gradient_without_a_finite_value_never_reaches_a_weight(value):
    pair = Pair().train(until=4)
    for model, optimizer in zip(pair.models, pair.optimizers, strict=True):
        for linear in model.linears:
            linear.weight.grad = torch.where(linear.weight == 0, value, 0.01)
        optimizer.step()
    pair.compare()
    assert not pair.leaves(5) and not any(weight.isnan().any() for weight in weights(pair.models[0]))
    pair.step = 5
    pair.train()
    assert not pair.leaves(STEPS)


def test_a_weight_without_a_gradient_is_left_as_it_is():
    pair = Pair().train(until=4)
    for optimizer in pair.optimizers:
        optimizer.zero_grad()
        optimizer.step()
    pair.compare()


@pytest.mark.parametrize("until", [0, 1, 4])
@pytest.mark.parametrize("name", WRITERS)
def test_what_others_write_is_seen_at_a_step_without_a_gradient_too(name, until):
    """Nothing is asked before such a step, so that an answer of an earlier one must not count."""
    if not until and "moments" in name:
        pytest.skip("there are no moments yet")
    pair = Pair().train(until=until)
    pair.each(WRITERS[name])
    for optimizer in pair.optimizers:
        optimizer.zero_grad()
        optimizer.step()
    pair.compare()
    assert all((linear.weight == 0).sum() == linear.weight.numel() // 2 for linear in pair.models[0].linears)
    assert not any(map(has_negative_zeros, weights(pair.models[0])))


def test_another_hook_ends_what_is_known():
    def push(optimizer, *_):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad.add_(0.1)

    pair = Pair().train(until=4)
    for optimizer in pair.optimizers:
        optimizer.register_step_pre_hook(push)
    pair.train()
    assert pair.leaves(4) and not pair.leaves(5) and not pair.leaves(STEPS)


def test_a_mask_that_is_solved_again_is_looked_at_again():
    for clear in ("both", "none"):
        pair = Pair(Masked(TWO_FOUR, refresh=Every(4), freeze=ALWAYS, clear=clear)).train()
        assert [pair.leaves(step) for step in (2, 4, 5)] == [True, True, False]


# Dense weights


DENSE = {
    "ste": Masked(TWO_FOUR),
    "refresh": Masked(TWO_FOUR, refresh=Every(3)),
    "scaled": Masked(TWO_FOUR, grad_scale=Constant(0.5)),
    "pull": Masked(TWO_FOUR, pull=Constant(0.05)),
    "shrink": Masked(TWO_FOUR, shrink=Constant(0.1), refresh=Every(2)),
    "reset": Masked(TWO_FOUR, reset=Every(3), clear="both"),
    "gain": Masked(TWO_FOUR, gain=Decay("linear"), chain=True),
    "fisher": Masked(TWO_FOUR, scores="fisher", refresh=Every(2)),
    "frozen later": LATE,
}


@each_optimizer
@pytest.mark.parametrize("method", DENSE)
def test_the_optimizer_trains_the_dense_weight_itself_with_the_same_bits(method, name):
    if method == "reset" and "adafactor" in name:
        pytest.skip("it keeps no moments that a reset could clear")
    pair = Pair(DENSE[method], OPTIMIZERS[name]).train()
    spared = {answer for _, question, answer in pair.noting.notes if question == "trains_dense"}
    assert spared == {method != "scaled" and name != "adafactor"}  # one that is not torch's


@pytest.fixture
def kernels_for_every_size(monkeypatch):
    pytest.importorskip("numba", reason="the kernels for CPUs need numba")
    monkeypatch.setattr(base, "MIN_NUMEL", 0)


@pytest.mark.usefixtures("kernels_for_every_size")
@pytest.mark.parametrize("method", {"frozen": FROZEN, **DENSE})
def test_our_adamw_masks_and_pulls_within_its_step_with_the_same_bits(method):
    pair = Pair({"frozen": FROZEN, **DENSE}[method], lambda m: AdamW(m.parameters(), lr=0.02)).train()
    answers = {}
    for step, question, answer in pair.noting.notes:
        answers.setdefault((question, answer), set()).add(step)
    frozen = {"frozen": 0, "frozen later": 3}.get(method, STEPS)
    assert answers.get(("mask_gradient", True), set()) == {*range(frozen, STEPS)}
    assert answers.get(("leaves_zeros", True), set()) == {*range(frozen + 1, STEPS + 1)}
    assert answers.get(("pull_dense", True), set()) == ({*range(STEPS)} if method == "pull" else set())
    assert not {(question, False) for question in ("mask_gradient", "leaves_zeros", "pull_dense")} & answers.keys()


@pytest.mark.usefixtures("kernels_for_every_size")
@pytest.mark.parametrize(("method", "question"), [(FROZEN, "mask_gradient"), (DENSE["pull"], "pull_dense")])
def test_masks_of_a_weight_that_is_stored_as_its_transpose_are_not_left_to_our_adamw(method, question):
    """Its kernel takes mask and weight in one order."""
    ends = []
    for around in (noting := Noting(method, []), Blind(method)):
        torch.manual_seed(0)
        model = make_model("gpt2").eval()
        optimizer = AdamW(model.parameters(), lr=0.02)
        attach(model, optimizer, NxMConfig(recipe=around), total_steps=2)
        for batch in make_batches("gpt2", 2):
            model(**batch).logits.square().mean().backward()
            optimizer.step()
        ends.append(model.state_dict())
    assert same(*ends) and noting.answers(question, 0) == noting.answers(question, 1) == {False}


def test_parameters_and_moments_are_the_models_own_before_and_after_a_step():
    pair = Pair(Masked(TWO_FOUR)).train(until=2)
    model, optimizer = pair.models[0], pair.optimizers[0]
    inside = []
    optimizer.register_step_post_hook(lambda *_: inside.append(1))  # another hook: it sees the model's own
    pair.train(until=4)
    for stepper in (optimizer, pair.optimizers[1]):
        mine = [id(p) for group in stepper.param_groups for p in group["params"]]
        own = pair.models[0 if stepper is optimizer else 1]
        assert mine == [id(p) for p in own.parameters()] and {id(p) for p in stepper.state} == set(mine)
    assert inside and all(linear.weight.grad is not None for linear in model.linears)
    assert pair.noting.answers("train", 1) == {True} and pair.noting.answers("train", 3) == {False}
    assert all(state["dense"].grad is None for state in pair.engines[0]._states.values())


def test_a_weight_that_is_stored_as_its_transpose_is_trained_in_place_too():
    model = make_model("gpt2")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    noting = Noting(Masked(TWO_FOUR), [])
    engine = attach(model, optimizer, NxMConfig(recipe=noting), total_steps=2)
    for batch in make_batches("gpt2", 2):
        model(**batch).logits.square().mean().backward()
        optimizer.step()
    assert noting.answers("trains_dense", 1) == noting.answers("trains_dense", 2) == {True}
    for target, dense in engine.trained_weights():
        assert dense.grad is None and set(optimizer.state) == set(model.parameters())
        assert same([target.matrix()], [dense * engine.tensors()[f"{target.name}/mask"]])


def test_a_step_that_is_interrupted_is_forgotten_at_the_next():
    pair = Pair(Masked(TWO_FOUR)).train(until=3)
    model, optimizer = pair.models[0], pair.optimizers[0]
    saved = pair.engines[0].state_dict(), copy.deepcopy([optimizer.state_dict(), model.state_dict()])
    optimizer.param_groups.append({"params": [torch.nn.Parameter(torch.ones(2))]})  # fails after all other groups
    optimizer.param_groups[-1]["params"][0].grad = torch.ones(2)
    with pytest.raises((TypeError, KeyError, RuntimeError, AttributeError)):
        next(iter(train(model, optimizer, 3, 4)))
    optimizer.param_groups.pop()
    assert optimizer.state_dict()["state"].keys() == saved[1][0]["state"].keys()
    model.load_state_dict(saved[1][1])
    pair.engines[0].load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1][0])
    pair.train()
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model.parameters()]


@pytest.mark.parametrize("window", [{"warmup": 0.5}, {"settle": 0.5}, {"warmup": 0.25, "settle": 0.25}], ids=str)
def test_phases_give_the_same_bits(window):
    Pair(Masked(TWO_FOUR), **window).train()
