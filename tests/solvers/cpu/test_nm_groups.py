"""Operations on whole weights, by one pass of a kernel and by steps of torch: the same bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nxm_hf.patterns import parse
from nxm_hf.solvers import cpu, entry_counts, masked_ops, weight_ops
from nxm_hf.solvers.base import Operation
from tests.support.cpu_kernels import FLOATS, INF, PLAIN, in_torch, weights
from tests.support.toy_training import same

pytest.importorskip("numba", reason="the kernels for CPUs need numba")
torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("kernels_for_every_size")
KERNELS = {
    each.name: each
    for module in (weight_ops, masked_ops, entry_counts)
    for each in vars(module).values()
    if isinstance(each, Operation)
}
quick = settings(max_examples=40)


def moved(x):
    """Return a copy that begins at the second entry of its memory, at which no vector begins."""
    return torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)


@quick
@given(weights(), weights(), weights(), st.sampled_from(PLAIN), st.booleans(), st.booleans())
def test_kernels_and_torch_do_the_same_to_a_weight(weight, r, other, text, first, dual):
    weight, r = (torch.where(x.isinf(), 7.0, x) for x in (weight, r))  # inf - inf is refused
    pattern, mask = parse(text), parse(text).largest(other)
    for act in (
        lambda w, x, m: weight_ops.admm_update(w, x, pattern, first, dual),
        lambda w, x, m: weight_ops.remask(w, m, x, pattern),
        lambda w, x, m: weight_ops.remask(w, m.fill_(True), x, pattern),
        lambda w, x, m: weight_ops.keep(w, m),
        lambda w, x, m: masked_ops.remask_and_store(w, m, x, pattern, 0.3),
        lambda w, x, m: masked_ops.remask_and_show(w, m, x, pattern, 0.0),
        lambda w, x, m: masked_ops.remask_and_show(w, m, x, pattern, 0.3),
        *(lambda w, x, m, act=act: act(w, m, x, 0.0) for act in (masked_ops.store_dense, masked_ops.show_masked)),
        *(lambda w, x, m, by=by: masked_ops.pull_pruned(w, m, x, by) for by in (1e-4, -0.3)),
        lambda w, x, m: masked_ops.pull_pruned(w, m, w, -0.3),
    ):
        ours, theirs = ([copy(x) for x in (weight, r, mask)] for copy in (moved, torch.clone))
        found, expected = act(*ours), in_torch(lambda act=act, theirs=theirs: act(*theirs))
        assert same(ours, theirs)
        assert (found is None and expected is None) or torch.equal(found, expected)


def test_what_is_pruned_of_infinities_is_zero():
    weight = torch.full((4, 64), -INF)
    weight_ops.keep(weight, parse("2:4").largest(weight))
    assert weight.isinf().sum() == 128 and same([weight[weight == 0]], [torch.zeros(128)])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_nan_is_refused_wherever_it_stands(dtype):
    for place in (0, 63, 64, 1023):
        weight = torch.randn(16, 64).to(dtype)
        weight.view(-1)[place] = torch.nan
        for act in (parse("2:4").largest, parse("2:4").project, parse("16:32").largest):
            with pytest.raises(ValueError, match="Scores hold 1 NaN of 1024"):
                act(weight)
    for w, r in ((weight.float(), torch.ones(16, 64)), (torch.ones(16, 64), weight.float())):
        with pytest.raises(ValueError, match="NaN"):
            weight_ops.admm_update(w, r, parse("2:4"), False, True)


@pytest.mark.parametrize(("old", "change"), [(True, [0, 512, 1024]), (False, [512, 0, 0])])
def test_a_new_mask_after_one_of_another_density_says_what_came_and_what_left(old, change):
    weight, mask = torch.randn(16, 64), torch.full((16, 64), old)
    assert weight_ops.remask(weight, mask, weight.clone(), parse("2:4")).tolist() == change


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_every_kernel_passes_its_self_test_here(name):
    """One that fails leaves its work to torch, and no other test would notice."""
    operation = KERNELS[name]
    tensors = [torch.ones(16, 64) if kind == "float" else torch.ones(16, 64).bool() for kind in operation.inputs]
    for text in ("2:4", "4:8", "16:32"):
        assert cpu.BACKEND.supports(operation, parse(text), *tensors), text


def test_every_kernel_has_an_operation():
    assert {*KERNELS, "mask"} == set(cpu.BACKEND.kernels.OPERATIONS)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("text", ["2:4", "1:2", "16:32", "unstructured:0.5"])
@pytest.mark.parametrize("wrong", [None, 1.0, -0.0, torch.nan, -torch.nan, INF])
def test_entries_are_counted_as_torch_counts_them(dtype, text, wrong):
    pattern = parse(text)
    for place in (0, 517, 1023):
        weight = pattern.project(torch.randn(16, 64).to(dtype))
        if wrong is not None:
            weight.view(-1)[place - place % 32 : place + 1] = wrong
        assert cpu.BACKEND.is_loaded
        assert pattern.count(weight) == in_torch(lambda weight=weight: pattern.count(weight))


@pytest.mark.parametrize("m", [2, 4])
def test_a_group_that_may_keep_all_entries_never_keeps_too_many(m):
    weight = torch.randn(16, 64).relu()
    assert cpu.BACKEND.kernels.run("count_entries", m, m, weight) == weight.count_nonzero()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("text", ["2:4", "1:2", "16:32"])
@pytest.mark.parametrize("wrong", [None, 1.0, -0.0, torch.nan])
@pytest.mark.parametrize("kept", [False, True])
def test_strays_are_found_wherever_they_stand(dtype, text, wrong, kept):
    pattern = parse(text)
    mask = pattern.largest(torch.randn(16, 64))
    clean = (torch.rand(16, 64) + 1).to(dtype) * mask
    at = mask.view(-1).nonzero() if kept else (~mask).view(-1).nonzero()
    for place in (at[0], at[len(at) // 2], at[-1]):
        weight = clean.clone()
        if wrong is not None:
            weight.view(-1)[place] = wrong
        held = entry_counts.holds_mask(weight, mask, pattern.n, pattern.m)
        assert held == (wrong is None or (kept and not wrong == 0))
        assert held == in_torch(lambda weight=weight: entry_counts.holds_mask(weight, mask, pattern.n, pattern.m))
        fuller = mask.clone()
        fuller.view(-1)[place - place % pattern.m : place - place % pattern.m + pattern.n + 1] = True
        assert not entry_counts.holds_mask(clean, fuller, pattern.n, pattern.m)
