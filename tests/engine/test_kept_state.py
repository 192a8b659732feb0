"""Moments of kept entries alone: the bits of dense moments, half the bytes, and dense again for whoever reads them."""

import copy
import pickle
from weakref import ref

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.nn.parallel import DistributedDataParallel

from nxm_hf import AdamW, attach
from nxm_hf.engine.kept_state import MOMENTS, KeptState
from nxm_hf.solvers import base
from nxm_hf.solvers.kept_entries import KeptEntries
from nxm_hf.solvers.masked_adamw import can_step_kept
from tests.support.grids import BOTH_WINDOWS, FEW, SPARSE, WINDOW, pairs
from tests.support.group_of_one import group_of_one
from tests.support.toy_training import TOTAL, Toy, adamw, load_run, same, save_run, short, train

SETTINGS = dict(lr=0.02, weight_decay=0.1)


@pytest.fixture(autouse=True)
def kernels_for_every_size(monkeypatch):
    monkeypatch.setattr(base, "MIN_NUMEL", 0)
    if not can_step_kept():
        pytest.skip("moments of kept entries need numba and AVX-512")


def ours(model, **settings):
    return AdamW(model.parameters(), **{**SETTINGS, **settings})


def dense(model):
    return ours(model, kept_moments=False)


def fused(model):
    return adamw(model, fused=True)


def packed(optimizer, model):
    states = [optimizer.state[linear.weight] for linear in model.linears]
    return [isinstance(state, KeptState) and state.is_packed for state in states]


def moments(optimizer):
    return [value.clone() for state in optimizer.state_dict()["state"].values() for value in state.values()]


def begun(make=ours, sparsity="asp", steps=2, total=50):
    """Return a toy after some steps, its optimizer and its engine."""
    model = Toy()
    optimizer = make(model)
    engine = attach(model, optimizer, sparsity, total_steps=total)
    for _ in train(model, optimizer, 0, steps):
        pass
    return model, optimizer, engine


def ended(model, optimizer, begin=2, end=6):
    """Train on. Return the weights and the moments."""
    for _ in train(model, optimizer, begin, end):
        pass
    return [*model.state_dict().values(), *moments(optimizer)]


# The bits of dense moments, and the bytes


@pairs(recipe=SPARSE, window=BOTH_WINDOWS, pattern=["2:4", "1:4", "unstructured:0.5"])
def test_a_training_that_nobody_reads_has_the_bits_of_torch(recipe, window, pattern):
    if recipe in ("structure-decay", "gradual"):
        pattern = "2:4"
    ends = []
    for make in (ours, fused):
        model, optimizer, engine = begun(make, short(recipe, pattern, **window), TOTAL, TOTAL)
        if make is ours and window:
            assert all(packed(optimizer, model))
        ends.append([*moments(optimizer), *engine.state_dict().values()])
        engine.finish()
        ends[-1] += model.state_dict().values()
    assert same(*ends)


@pytest.mark.parametrize(
    "settings",
    [{"maximize": True}, {"weight_decay": 0.0}, {"betas": (0.6, 0.0)}, {"eps": 1.0}, {"lr": torch.tensor(0.1)}],
    ids=str,
)
def test_every_setting_has_the_bits_of_torch(settings):
    ends = []
    for make in (AdamW, torch.optim.AdamW):
        model, optimizer, _ = begun(lambda model, make=make: make(model.parameters(), fused=True, **settings), steps=5)
        assert packed(optimizer, model) == [make is AdamW] * 4
        ends.append([*model.state_dict().values(), *moments(optimizer)])
    assert same(*ends)


@pytest.mark.parametrize(("pattern", "share"), [("2:4", 2), ("1:4", 4), ("2:4-transposable", 2), ("block:4x4:0.5", 2)])
def test_moments_of_kept_entries_and_a_bit_per_entry_are_all_that_is_stored(pattern, share):
    model, optimizer, _ = begun(sparsity={"recipe": "asp", "pattern": pattern})
    for linear in model.linears:
        numel, state = linear.weight.numel(), optimizer.state[linear.weight]
        assert state.nbytes == 2 * 4 * numel // share + numel // 8 + 2 * 8
        state.unpack()
        assert state.nbytes == 2 * 4 * numel


def test_dense_moments_are_freed_when_they_are_packed():
    model, optimizer, _ = begun()
    held = [ref(state[name]) for state in optimizer.state_dict()["state"].values() for name in MOMENTS]
    assert all(each() is not None for each in held)
    ended(model, optimizer, 2, 3)
    assert sum(each() is None for each in held) == 2 * len(model.linears)


def test_dense_moments_stay_the_same_tensors_if_they_are_asked_for():
    model, optimizer, _ = begun(dense)
    held = [optimizer.state[linear.weight]["exp_avg"] for linear in model.linears]
    ended(model, optimizer)
    assert all(
        optimizer.state[each.weight]["exp_avg"] is moment for each, moment in zip(model.linears, held, strict=True)
    )
    assert type(optimizer.state[model.linears[0].weight]) is dict


# Readers


READERS = {
    "item": lambda state: [state[name] for name in MOMENTS],
    "get": lambda state: [state.get(name) for name in MOMENTS],
    "values": lambda state: [*state.values()][1:],
    "items": lambda state: [value for name, value in state.items() if name in MOMENTS],
    "dict": lambda state: [dict(state)[name] for name in MOMENTS],
    "stars": lambda state: [{**state}[name] for name in MOMENTS],
    "copy": lambda state: [*copy.copy(state).values()][1:],
    "copied": lambda state: [*state.copy().values()][1:],
    "deepcopy": lambda state: [*copy.deepcopy(state).values()][1:],
    "pickle": lambda state: [*pickle.loads(pickle.dumps(state)).values()][1:],
    "union": lambda state: [(state | {})[name] for name in MOMENTS],
    "other union": lambda state: [({} | state)[name] for name in MOMENTS],
    "names": lambda state: [dict.__getitem__(state, name) for name in state if name in MOMENTS],
    "default": lambda state: [state.setdefault(name) for name in MOMENTS],
    "text": lambda state: str(state) and [dict.__getitem__(state, name) for name in MOMENTS],
    "update": lambda state: state.update({}) or [dict.__getitem__(state, name) for name in MOMENTS],
}


@pytest.mark.parametrize("reader", READERS)
def test_whoever_reads_moments_finds_dense_ones_and_changes_no_bit(reader):
    (model, optimizer, _), (other, other_optimizer, _) = begun(), begun(dense)
    for linear, same_linear in zip(model.linears, other.linears, strict=True):
        state, expected = optimizer.state[linear.weight], other_optimizer.state[same_linear.weight]
        assert isinstance(state, KeptState) and len(state) == 3 and "exp_avg" in state
        assert same(READERS[reader](state), [expected[name] for name in MOMENTS])
    assert same(ended(model, optimizer), ended(other, other_optimizer))


def test_the_number_of_steps_is_read_without_unpacking():
    model, optimizer, _ = begun()
    for linear in model.linears:
        state = optimizer.state[linear.weight]
        assert state["step"] == state.get("step") == 2 and state.get("max_exp_avg_sq") is None
    assert all(packed(optimizer, model))


WRITERS = {
    "in place": lambda state: state["exp_avg"].mul_(0.5),
    "of pruned entries": lambda state: state["exp_avg_sq"].add_(1.0),
    "negative zeros": lambda state: state["exp_avg"].mul_(-1.0),
    "another tensor": lambda state: state.update(exp_avg=torch.ones_like(state["exp_avg"])),
    "all": lambda state: state.clear(),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_whoever_writes_to_moments_is_heard(writer):
    ends = []
    for make in (ours, dense):
        model, optimizer, _ = begun(make)
        for linear in model.linears:
            WRITERS[writer](optimizer.state[linear.weight])
        ends.append(ended(model, optimizer))
    assert same(*ends)


def test_moments_that_are_read_at_every_step_are_packed_ever_more_rarely():
    model, optimizer, _ = begun(total=100)
    packings = []
    for step in train(model, optimizer, 2, 70):
        if packed(optimizer, model)[0]:
            packings.append(step)
            assert all(packed(optimizer, model)[1:])
        READERS["item"](optimizer.state[model.linears[0].weight])
    assert packings == [3, 5, 8, 13, 22, 39]


@pytest.mark.parametrize("last_read", [0, 1, 8, 9])
def test_moments_are_packed_as_soon_as_a_mask_is_final_whoever_has_read_them_before(last_read):
    model, optimizer, _ = begun(sparsity=short("rigl", settle=0.25), total=TOTAL, steps=0)
    after = []
    for step in train(model, optimizer, 0, TOTAL):
        if step < last_read:
            READERS["item"](optimizer.state[model.linears[0].weight])
        if step >= 9:
            after.append(packed(optimizer, model)[0])
    assert after == [False, True, True, True]


def test_a_mask_that_is_frozen_again_leaves_moments_dense_for_one_step():
    model, optimizer, _ = begun(sparsity=short("asp", **WINDOW), total=TOTAL, steps=0)
    steps = [packed(optimizer, model)[0] for _ in train(model, optimizer, 0, TOTAL)]
    assert TOTAL == 12 and steps == [False] * 3 + [True] * 5 + [False] + [True] * 3


# Resuming and copies


@pytest.mark.parametrize("recipe", FEW)
@pytest.mark.parametrize("changes", [(ours, fused), (fused, ours), (ours, dense)])
def test_a_run_resumes_from_packed_moments_bit_for_bit(recipe, changes):
    before, after = changes
    config = short(recipe, **WINDOW)
    model, optimizer, engine = begun(before, config, 10, TOTAL)
    saved = save_run(model, optimizer, engine)
    again, stepper, resumed = load_run(saved, config, after)
    assert same(ended(model, optimizer, 10, TOTAL), ended(again, stepper, 10, TOTAL))
    assert same(engine.state_dict(), resumed.state_dict())


def test_a_state_dict_is_made_of_plain_dicts_in_the_order_of_torch():
    (model, optimizer, _), (_, other, _) = begun(), begun(fused)
    assert all(packed(optimizer, model))
    state, expected = optimizer.state_dict(), other.state_dict()
    assert [*state["state"]] == [*expected["state"]] and state["param_groups"] == expected["param_groups"]
    for number, slots in state["state"].items():
        assert type(slots) is dict and [*slots] == [*expected["state"][number]]
        assert same(slots, expected["state"][number])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
@pytest.mark.parametrize("kept", [True, False])
def test_a_copy_of_the_optimizer_has_its_moments_and_its_choice(copied, kept):
    _, optimizer, engine = begun(lambda model: ours(model, kept_moments=kept))
    engine.finish()
    twin = copied(optimizer)
    assert twin.kept_moments is kept and same(moments(twin), moments(optimizer))
    assert not any(isinstance(state, KeptState) for state in twin.state.values())


def test_distributed_checkpoints_of_torch_read_and_set_dense_moments():
    with group_of_one():
        ends = []
        for make in (ours, dense):
            model, optimizer, _ = begun(make)
            state = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
            ended(model, optimizer, 2, 4)
            set_optimizer_state_dict(model, optimizer, state)
            names = [f"{name}.{which}" for name, _ in model.named_parameters() for which in MOMENTS]
            ends.append([state["state"][name.rpartition(".")[0]][name.rpartition(".")[2]] for name in names])
            ends[-1] = [*map(torch.clone, ends[-1]), *ended(model, optimizer)]
        assert same(*ends)


def test_a_replicated_model_packs_its_moments_too():
    with group_of_one():
        ends = []
        for make in (ours, fused):
            model = Toy()
            wrapped, optimizer = DistributedDataParallel(model), make(model)
            attach(model, optimizer, "asp", total_steps=9)
            for _ in train(wrapped, optimizer, 0, 4):
                pass
            assert packed(optimizer, model) == [make is ours] * 4
            ends.append([*model.state_dict().values(), *moments(optimizer)])
        assert same(*ends)


# Masks that change, and steps without a kernel


def test_a_state_is_begun_on_the_device_of_its_mask_in_fp32_however_new_tensors_are_made():
    mask = torch.arange(128).view(8, 16) % 2 == 0
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            state = KeptState.of({}, mask)
    finally:
        torch.set_default_dtype(torch.float32)
    state.unpack()
    assert same(state, {"step": torch.zeros(()), **{name: torch.zeros(8, 16) for name in MOMENTS}})


def test_moments_follow_a_mask_that_changes():
    """Some entries are pruned, some come back, and once the mask is written to in place."""
    noise = torch.Generator().manual_seed(0)
    first, second = (torch.rand(8, 16, generator=noise) > 0.5 for _ in range(2))
    masks = [first, first.clone(), first & second, first, first | second, second, second.logical_not_(), second]
    gradients = [torch.randn(8, 16, generator=noise) for _ in masks]
    ends = []
    for kept in (True, False):
        parameter = nn.Parameter(torch.ones(8, 16))
        optimizer = AdamW([parameter], kept_moments=kept, **SETTINGS)
        for number, (mask, gradient) in enumerate(zip(masks, gradients, strict=True)):
            if number == 6:
                mask = masks[5].clone() if not kept else masks[5]
            parameter.grad = gradient
            assert optimizer.mask_next_step(parameter, mask)
            optimizer.step()
        ends.append([parameter.detach(), *moments(optimizer)])
    assert same(*ends)


def test_a_mask_is_compared_only_if_it_is_another_tensor_or_was_written_to(monkeypatch):
    """A comparison takes as long as a part of the step."""
    compared, has_mask = [], KeptEntries.has_mask
    monkeypatch.setattr(KeptEntries, "has_mask", lambda kept, mask: compared.append(mask) or has_mask(kept, mask))
    mask = torch.arange(128).view(8, 16) % 2 == 0
    state, twin = KeptState.of({}, mask), mask.clone()
    for each, comparisons in ((mask, 0), (mask.view(8, 16), 0), (twin, 1), (twin, 1), (mask, 2), (mask, 2)):
        assert state.packed_by(each) is state.packed and len(compared) == comparisons
    mask.logical_not_().logical_not_()
    assert state.packed_by(mask) is state.packed_by(mask) is state.packed and len(compared) == 3
    assert state.packed_by(mask.view(16, 8)) is None and state.is_packed


def test_a_mask_that_is_written_to_in_place_is_noticed():
    ends = []
    for kept in (True, False):
        mask = torch.arange(128).view(8, 16) % 2 == 0
        parameter = nn.Parameter(torch.ones(8, 16))
        optimizer = AdamW([parameter], kept_moments=kept, **SETTINGS)
        for number in range(6):
            parameter.grad = torch.full((8, 16), 0.1 * (number + 1))
            assert optimizer.mask_next_step(parameter, mask.view(8, 16))
            optimizer.step()
            if number in (1, 3):
                mask.logical_not_()
        ends.append([parameter.detach(), *moments(optimizer)])
    assert same(*ends)


CHANGES = {
    "betas": lambda group: group.update(betas=(0.4, 0.9)),
    "foreach": lambda group: group.update(fused=False, foreach=True),
    "no gradient": lambda group: None,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_step_without_a_kernel_finds_dense_moments(change):
    ends = []
    for make in (ours, dense):
        model, optimizer, engine = begun(make)
        if change == "no gradient":
            engine.release()
        CHANGES[change](optimizer.param_groups[0])
        ends.append(ended(model, optimizer))
        assert not any(packed(optimizer, model))
    assert same(*ends)
