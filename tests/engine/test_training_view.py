"""The training view of weights that were deployed: it comes back bit for bit, and takes no more memory than a copy."""

import math

import pytest
import torch

from nxm_hf import NxMConfig, attach
from nxm_hf.engine import training_view
from nxm_hf.engine.training_view import (
    Difference,
    Keeping,
    TrainingTensors,
    as_tensor,
    can_keep_and_hold,
    hold_difference,
)
from nxm_hf.methods import Masked
from nxm_hf.methods.schedules import Constant
from nxm_hf.patterns import NM, parse
from nxm_hf.solvers import cpu, reference_only
from nxm_hf.solvers.entry_counts import count_entries
from nxm_hf.storage.verify import verify_targets
from tests.support import toy_training
from tests.support.grids import EACH_SPARSE_RECIPE
from tests.support.toy_training import TOTAL, Toy, adamw, all_tensors, bits, same, short, train, trained

SPECIAL = (0.0, -0.0, math.nan, math.inf, 1e-40, 1.0)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Compare so few entries at a time that a weight has several parts, the last a short one."""
    monkeypatch.setattr(training_view, "_PART", 100)


def weight_of(dtype: torch.dtype, transposed: bool) -> torch.Tensor:
    """Return a weight with unusual numbers."""
    weight = torch.randn(24, 12, generator=torch.Generator().manual_seed(0))
    weight.view(-1)[: len(SPECIAL)] = torch.tensor(SPECIAL)
    weight = weight.to(dtype)
    return weight.t() if transposed else weight


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.float8_e5m2],
    ids=str,
)
@pytest.mark.parametrize("transposed", [False, True])
def test_what_pruning_changed_comes_back_bit_for_bit_from_about_half_of_the_memory(dtype, transposed):
    weight = weight_of(dtype, transposed)
    copy = weight.clone()
    held = {"a": copy}
    weight[::2] = 0.0
    deployed = weight.clone()
    hold_difference(held, "a", weight)
    assert isinstance(held["a"], Difference)
    assert copy.nbytes / 3 < held["a"].nbytes <= copy.nbytes / 2 + copy.numel() / 8 + 3
    assert torch.equal(bits(as_tensor(held["a"])), bits(copy))
    assert torch.equal(bits(TrainingTensors(held)["a"]), bits(copy)) and torch.equal(bits(weight), bits(deployed))
    version = weight._version
    held["a"].undo(weight)
    assert torch.equal(bits(weight), bits(copy)) and weight._version > version, "autograd has to know"


def test_one_entry_of_other_bits_is_held_and_equal_ones_are_not():
    weight = weight_of(torch.float32, False)
    held = {"a": weight.clone()}
    hold_difference(held, "a", weight)
    assert held == {}, "a NaN equals itself"
    held = {"a": weight.clone()}
    weight[0, 1] = 0.0  # it was -0.0
    hold_difference(held, "a", weight)
    assert isinstance(held["a"], Difference) and held["a"].nbytes == 4 + 13 + 13 + 11
    held["a"].undo(weight)
    assert math.copysign(1, weight[0, 1]) == -1


def test_many_entries_that_had_the_same_bits_are_held_as_one():
    weight = weight_of(torch.float32, False)
    weight[:, ::3] = -0.0
    held = {"a": weight.clone()}
    expected = bits(weight).clone()
    weight[:, ::3] = 0.0
    hold_difference(held, "a", weight)
    assert held["a"].nbytes == 3 * 4 + 13 + 13 + 11
    assert torch.equal(bits(as_tensor(held["a"])), expected)


@pytest.mark.parametrize(
    "weight",
    [
        torch.arange(96.0).view(8, 12),
        torch.ones(8, 24)[:, ::2],
        torch.ones(24)[::2],
        torch.ones(8, 12, device="meta"),
        torch.ones(8, 12, dtype=torch.complex128),
    ],
)
def test_the_copy_is_held_if_most_entries_change_or_they_do_not_lie_side_by_side(weight):
    copy = weight.clone()
    held = {"a": copy}
    weight.add_(1.0)
    if not weight.is_contiguous():
        weight[1:] -= 1.0
    hold_difference(held, "a", weight)
    assert held["a"] is copy and as_tensor(copy) is copy


@pytest.mark.parametrize("recipe, share", [("ste", 0.06), ("asp", 0), ("admm", 0.54), ("regularize", 0.54)])
def test_the_deployed_view_holds_no_dense_copy_of_any_weight(recipe, share):
    """Half of the entries of 2:4 and a bit for each. Of -0.0 that becomes +0.0 it is the bits alone."""
    model = Toy()
    optimizer = adamw(model)
    engine = attach(model, optimizer, short(recipe), total_steps=TOTAL)
    next(train(model, optimizer, 0, 1))
    before = [linear.weight.detach().clone() for linear in model.linears]
    with engine.deployed():
        held = engine._view._training or {}
        sizes = [held[target.name].nbytes if target.name in held else 0 for target in engine.plan.targets]
        assert sum(sizes) <= share * sum(target.matrix().nbytes for target in engine.plan.targets)
        assert all(sizes) == bool(share), "the recipe trains dense weights"
        assert all(parse("2:4").violations(linear.weight) == 0 for linear in model.linears)
    assert same(before, [linear.weight for linear in model.linears])


@pytest.mark.parametrize(
    "move",
    [
        lambda model: model.double().float(),
        lambda model: model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True),
    ],
    ids=["to another type and back", "weights assigned"],
)
@pytest.mark.parametrize("recipe", ["ste", "admm", "fade", "mask-decay"])
def test_the_training_view_comes_back_into_weights_that_were_moved_meanwhile(recipe, move):
    """As by `model.to(...)` for an evaluation. The memory that was deployed is not the model's then."""
    model, engine = trained(short(recipe), steps=4, total=TOTAL)
    before = [linear.weight.detach().clone() for linear in model.linears]
    with engine.deployed():
        move(model)
    assert same(before, [linear.weight for linear in model.linears])
    with engine.deployed():
        model.to(torch.bfloat16)
    assert same([weight.bfloat16() for weight in before], [linear.weight for linear in model.linears])


def test_a_change_in_place_inside_the_deployed_view_is_warned_of_by_layer(caplog):
    model, engine = trained(short("admm"), steps=4, total=TOTAL)
    before = all_tensors(model, engine)
    with engine.deployed(), torch.no_grad():
        model.head.weight.add_(1.0)
        model.blocks[0].up.bias.add_(1.0)
    assert caplog.messages == [], "only pruned weights are held"
    with engine.deployed(), torch.no_grad():
        model.blocks[1].down.weight.round_(decimals=1)
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith("Other code has changed blocks.1.down.weight in")
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed == {"head.weight", "blocks.0.up.bias", "blocks.1.down.weight"}


@pytest.fixture
def kernels(monkeypatch):
    """Have kernels, toys whose weights are large enough for them, and two parts of each weight."""
    if not cpu.BACKEND.works() or not cpu.BACKEND.kernels.can_gather():
        pytest.skip("the kernels that gather need numba and AVX-512")
    monkeypatch.setattr(toy_training, "WIDTH", 256)
    monkeypatch.setattr(training_view, "_PART", 2**16)


@EACH_SPARSE_RECIPE
def test_kernels_deploy_and_go_back_with_the_bits_of_numpy(recipe, kernels, caplog):
    model, engine = trained(short(recipe), steps=3, total=TOTAL)
    weight = model.linears[0].weight
    before = weight.detach().clone()
    with engine.deployed():
        with_kernels = weight.detach().clone()
        held = engine._view._training.get("blocks.0.up")
    assert same([before], [weight])
    with reference_only(), engine.deployed():
        assert same([with_kernels], [weight])
        also_held = engine._view._training.get("blocks.0.up")
    assert same([before], [weight]) and type(held) is type(also_held)
    assert not [message for message in caplog.messages if message.startswith("Other code")]


@pytest.mark.parametrize("done", [0, 1])
@pytest.mark.parametrize("written", [False, True])
def test_an_interrupt_between_or_after_parts_puts_back_what_has_changed_so_far(done, written, kernels, monkeypatch):
    model, engine = trained(short("admm"), steps=3, total=TOTAL)
    weight = model.linears[0].weight
    before, keep, calls = weight.detach().clone(), training_view.keep_entries, []

    def stop(*parts):
        if len(calls) < done:
            calls.append(parts)
            return keep(*parts)
        if written:
            keep(*parts)
        raise KeyboardInterrupt

    monkeypatch.setattr(training_view, "keep_entries", stop)
    with pytest.raises(KeyboardInterrupt):
        engine.deploy()
    assert len(calls) == done and same([before], [weight])


def test_a_source_or_mask_that_does_not_fit_is_left_to_the_method(kernels):
    weight, held = torch.ones(256, 512), {}
    mask = torch.ones(256, 512, dtype=torch.bool)
    odd = (weight.bfloat16(), mask), (weight.t().contiguous().t(), mask), (weight[:128], mask), (weight, mask[:128])
    for source, kept in odd:
        assert not Keeping(held).keep("a", weight, source, kept, parse("2:4")) and not held
    assert (weight == 1).all() and not can_keep_and_hold(weight.t()) and not can_keep_and_hold(weight.double())
    assert not can_keep_and_hold(weight.to(torch.complex128)) and not can_keep_and_hold(weight.to("meta"))
    with pytest.raises(ValueError, match="width 510"):
        Keeping(held).keep("a", torch.ones(256, 510), torch.ones(256, 510), NM(2, 4), NM(2, 4))
    assert not held


@pytest.mark.parametrize("recipe", ["ste", "admm"])
def test_weights_are_counted_in_the_pass_that_prunes_them_as_they_are_afterwards(recipe, kernels, monkeypatch):
    """Also if the method prunes them wrongly: what is counted is what stands in memory."""
    _, engine = trained(short(recipe), steps=3, total=TOTAL)
    with monkeypatch.context() as patches:
        patches.setattr(NM, "count", lambda *_: pytest.fail("it is counted twice"))
        patches.setattr(NM, "largest", lambda *_: pytest.fail("a mask of the whole weight is made"))
        engine.deploy()
    assert engine.verification.ok and engine.verification == verify_targets(engine.plan.targets)
    engine.undeploy()
    weight = torch.randn(512, 640)
    mask = torch.ones(weight.shape, dtype=torch.bool)
    weight[0, :3] = torch.tensor([math.nan, -0.0, 0.0])
    keeping = Keeping({})
    assert keeping.keep("a", weight, weight, mask, NM(2, 4))
    assert keeping.counts["a"] == count_entries(weight, 2, 4)
    assert keeping.counts["a"].violations and keeping.counts["a"].nans == 1
    for other in (NM(3, 5), parse("unstructured:0.5")):
        assert keeping.keep("b", weight, weight, mask, other)
    assert keeping.counts.keys() == {"a"}, "others have no groups that fill parts"


@pytest.mark.parametrize("text", ["unstructured:0.5", "block:4:0.5", "2:4-transposable", "6:10"])
def test_patterns_that_no_kernel_solves_in_parts_are_deployed_with_the_masks_of_whole_weights(
    text, kernels, monkeypatch
):
    monkeypatch.setattr(toy_training, "WIDTH", 320)
    model, engine = trained(NxMConfig("ste", text), steps=2, total=TOTAL)
    dense = [weight.detach().clone() for _, weight in engine.trained_weights()]
    with engine.deployed():
        expected = [torch.where(parse(text).largest(weight), weight, 0.0) for weight in dense]
        assert same(expected, [linear.weight for linear in model.linears])


@pytest.mark.parametrize("recipe", ["ste", "admm"])
def test_a_nan_is_named_by_layer_and_what_was_pruned_before_it_comes_back(recipe, kernels, monkeypatch):
    monkeypatch.setattr(training_view, "_PART", 2**14)
    model, engine = trained(short(recipe), steps=3, total=TOTAL)
    _, weight = list(engine.trained_weights())[-1]
    weight[-1, -1] = math.nan  # in the last layer, and in its last part
    before = all_tensors(model, engine)
    with pytest.raises(ValueError, match=rf"Layer {engine.plan.targets[-1].name}, .*Scores hold 1 NaN"):
        engine.deploy()
    assert not engine.is_deployed and same(before.values(), all_tensors(model, engine).values())


def test_what_a_kernel_writes_counts_as_a_change_in_place_of_a_weight_that_trains(kernels):
    """Autograd has to know, and the change itself is not one by other code."""
    weight, held = torch.nn.Parameter(torch.randn(256, 512)), {}
    before, version = weight.detach().clone(), weight._version
    mask = before > 0
    assert can_keep_and_hold(weight) and Keeping(held).keep("a", weight, weight, mask, NM(2, 4))
    assert weight._version > version and not held["a"].has_changed and torch.equal(weight, before.where(mask, 0.0))
    held["a"].undo(weight)
    assert torch.equal(weight, before) and held["a"].has_changed and weight.requires_grad


@pytest.mark.parametrize(("rows", "fits"), [(256, True), (512, True), (255, False), (384, False), (513, False)])
def test_a_kernel_takes_weights_all_parts_of_which_are_large_enough(rows, fits, kernels):
    """A part has 256 rows here, and a kernel takes no fewer."""
    assert can_keep_and_hold(torch.ones(rows, 256)) == fits


class Doubling(Masked):
    """A user's method that ends in another weight than the one it is derived from."""

    def finish(self, weight, state, clock):
        mask = super().finish(weight, state, clock)
        weight.mul_(2)
        return mask


@pytest.mark.parametrize("settle", [0.0, 0.5])
def test_a_method_that_overrides_finish_alone_is_deployed_by_it(settle, kernels):
    twice = []
    for kind in (Masked, Doubling):
        config = NxMConfig(recipe=kind(Constant(NM(2, 4))), settle=settle)
        model, engine = trained(config, steps=1, total=TOTAL)
        with engine.deployed():
            twice.append([linear.weight.detach().clone() for linear in model.linears])
    assert same([2 * weight for weight in twice[0]], twice[1])


@pytest.mark.parametrize("settle", [0.0, 0.5])
def test_a_method_that_overrides_finish_alone_is_asked_to_finish_a_frozen_mask_too(settle, kernels):
    twice = []
    for kind in (Masked, Doubling):
        frozen = kind(Constant(NM(2, 4)), freeze=lambda clock: True)
        model, engine = trained(NxMConfig(recipe=frozen, settle=settle), steps=1, total=TOTAL)
        with engine.deployed():
            twice.append([linear.weight.detach().clone() for linear in model.linears])
    assert same([2 * weight for weight in twice[0]], twice[1])
