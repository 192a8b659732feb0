"""What is done to a whole weight, in torch: against the same written out step by step, in one part or in many."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nxm_hf.layers.find import find_layers
from nxm_hf.layers.weight_part import SharedPattern, WeightPart
from nxm_hf.patterns import parse
from nxm_hf.solvers import base, reference_only, weight_ops
from nxm_hf.solvers.nm_sort import by_sorting
from tests.support.group_of_one import group_of_one
from tests.support.models import make_bert
from tests.support.scores import EXTREMES, FLOATS, assert_stays_on_device, generator
from tests.support.toy_training import same

torch.set_num_threads(1)
INF = float("inf")
EACH_FLOAT = pytest.mark.parametrize("dtype", FLOATS, ids=str)
PATTERNS = ["2:4", "1:2", "3:4", "4:8", "3:5", "16:32", "4:8-transposable", "unstructured:0.4", "block:4:0.5"]


@pytest.fixture
def in_torch():
    with reference_only():
        yield


def tied(seed, dtype, shape=(40, 480)):
    """Zeros of both signs, and many equals."""
    found = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    found[::3] = (found[::3] * 2).round()
    return found


def extreme(shape, dtype, seed=0):
    """Numbers with zeros of both signs, infinities, and the largest and smallest ones among them."""
    numbers = torch.randn(shape, generator=generator(seed))
    pick = torch.randint(0, 2 * len(EXTREMES), shape, generator=generator(seed + 1))
    for number, value in enumerate(EXTREMES):
        numbers[pick == number] = value
    return numbers.to(dtype)


def mask_of(weight, pattern):
    return by_sorting(weight.abs(), pattern) if pattern.kind == "nm" else pattern.nearest(weight)


@pytest.mark.parametrize("text", PATTERNS)
def test_the_admm_update_is_what_the_paper_writes(text, monkeypatch):
    """Z and U as two tensors: V = W + U, Z = project(V), U = V - Z."""
    monkeypatch.setattr(weight_ops, "PART", 1000)
    pattern = parse(text)
    for dtype, dual, flip in [(torch.float32, True, False), (torch.float64, True, True), (torch.float32, False, False)]:
        weights = [tied(seed, dtype, (480, 480)).T if flip else tied(seed, dtype) for seed in range(3)]
        r, u, before = torch.full_like(weights[0], torch.nan), torch.zeros_like(weights[0]), None
        for weight in weights:
            given = weight.clone()
            with reference_only():
                moved = weight_ops.admm_update(weight, r, pattern, before is None, dual)
            v = weight + u
            mask = mask_of(v, pattern)
            z, u = torch.where(mask, v, 0), torch.where(mask, 0, v) * dual
            assert torch.equal(weight, given) and torch.equal(r, z - u) and (dual or not r[~mask].signbit().any())
            if before is None:
                assert moved is None
            else:
                came, left = int((mask & ~before).sum()), int((before & ~mask).sum())
                assert moved.tolist() == [came, left, int(before.sum())]
            before = mask


@pytest.mark.parametrize("scale", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("text", ["2:4", "4:8", "unstructured:0.4"])
def test_a_scale_of_the_dual_variable_touches_pruned_entries_alone(text, scale, monkeypatch):
    """With kernels too, and the next update reads Z and the scaled U from R."""
    monkeypatch.setattr(weight_ops, "PART", 1000)
    pattern, first, second = parse(text), tied(0, torch.float32), tied(1, torch.float32)
    r = torch.full_like(first, torch.nan)
    weight_ops.admm_update(first, r, pattern, True, True, scale)
    mask = mask_of(first, pattern)
    assert torch.equal(r, torch.where(mask, first, -(scale * first)))
    u = torch.where(mask, 0, scale * first)
    weight_ops.admm_update(second, r, pattern, False, True, scale)
    v = second + u
    mask = mask_of(v, pattern)
    assert torch.equal(r, torch.where(mask, v, -(scale * v))) and torch.equal(mask_of(r, pattern), mask)


@pytest.mark.parametrize("dual", [True, False])
def test_the_admm_update_is_right_to_the_bit(dual):
    """Zeros of both signs, infinities, and numbers next to nothing."""
    extremes = torch.tensor([-0.0, 0.0, INF, -INF, 1e-45, -1e-45, 3e38, 1.0])
    pattern, pick = parse("2:4"), torch.Generator().manual_seed(0)
    weight, r = (extremes[torch.randint(0, 8, (40, 64), generator=pick)] for _ in range(2))
    before = by_sorting(r.abs(), pattern)
    r[~before & r.isinf()] = 5.0  # an infinity less an infinity is refused
    before = by_sorting(r.abs(), pattern)
    v = weight - torch.where(before, 0.0, r) if dual else weight
    mask = by_sorting(v.abs(), pattern)
    with reference_only():
        weight_ops.admm_update(weight, r, pattern, False, dual)
    assert same([r], [torch.where(mask, v, -v if dual else torch.zeros(()))])


def test_a_nan_is_refused_in_every_part(monkeypatch):
    monkeypatch.setattr(weight_ops, "PART", 100)
    for place in (0, 1000, 19199):
        for number in (0, 1):
            weight_and_r = [tied(0, torch.float32), tied(1, torch.float32)]
            weight_and_r[number].view(-1)[place] = torch.nan
            if number:  # wherever the mask of R is
                weight_and_r[1].view(-1)[place // 4 * 4 : place // 4 * 4 + 4] = torch.nan
            with reference_only(), pytest.raises(ValueError, match="NaN"):
                weight_ops.admm_update(*weight_and_r, parse("2:4"), False, True)


def test_a_change_counts_what_came_what_left_and_what_was_there():
    before, after = torch.tensor([1, 1, 1, 0, 0]).bool(), torch.tensor([1, 0, 0, 1, 0]).bool()
    assert weight_ops.mask_change(before, after).tolist() == [1, 2, 3]
    assert weight_ops.mask_change(after, before).tolist() == [2, 1, 2]
    assert weight_ops.mask_change_of_counts(changed=3, old=3, new=2).tolist() == [1, 2, 3]
    assert weight_ops.mask_change_of_counts(changed=3, old=2, new=3).tolist() == [2, 1, 2]


@pytest.mark.parametrize(("old", "change"), [(True, [0, 9600, 19200]), (False, [9600, 0, 0])])
def test_a_new_mask_after_one_of_another_density_says_what_came_and_what_left(old, change):
    weight, mask = tied(0, torch.float32), torch.full((40, 480), old)
    with reference_only():
        assert weight_ops.remask(weight, mask, weight.clone(), parse("2:4")).tolist() == change


# -- masks, projections, and what is set to zero -----------------------------------------------------------------------


@EACH_FLOAT
def test_what_a_mask_prunes_is_a_true_zero_and_what_it_keeps_stays(dtype, tier):
    """Infinities and NaN too; a kept -0.0 becomes +0.0."""
    for shape in [(16, 64), (7, 12), (1, 4), (0, 8)]:
        weight, mask = extreme(shape, dtype), torch.rand(shape, generator=generator(5)) < 0.5
        for value in (1.0, INF, torch.nan):
            if weight.numel():
                weight[0, 1], mask[0, 1] = value, value != value
                weight[0, 2], mask[0, 2] = value, value == value
            given = weight.clone()
            out, own = torch.full(shape, 7.0).to(dtype), weight.clone()
            assert weight_ops.keep(given, mask) is None and weight_ops.kept(weight, mask, out) is out
            assert weight_ops.kept(own, mask, own) is own
            expected = torch.where(mask, weight, 0.0) + 0
            for found in (given, out, own):  # all bits but those of a NaN
                assert same([found.nan_to_num(7.0, INF, -INF)], [expected.nan_to_num(7.0, INF, -INF)])
                assert torch.equal(found.isnan(), expected.isnan())


@EACH_FLOAT
@pytest.mark.parametrize("text", PATTERNS)
def test_a_projection_is_the_weight_in_its_nearest_mask_and_true_zeros(text, dtype, in_torch):
    pattern = parse(text)
    for weight in (tied(0, dtype), extreme((40, 480), dtype), tied(0, dtype, (480, 40)).T, tied(1, dtype)[:0]):
        given = weight.clone()
        if weight.numel():
            mask = mask_of(weight.contiguous(), pattern)
            assert same([weight_ops.project(weight, pattern)], [torch.where(mask, weight, 0.0) + 0])
            assert torch.equal(weight_ops.nearest_mask(weight, pattern), mask)
            masks = [weight_ops.magnitude_mask(each, pattern) for each in (weight, weight.abs())]
            assert torch.equal(*masks) and torch.equal(masks[0], pattern.mask(weight.abs()))
        elif pattern.kind != "unstructured":
            found = [act(weight, pattern) for act in (weight_ops.project, weight_ops.nearest_mask)]
            assert [(each.shape, each.dtype) for each in found] == [((0, 480), dtype), ((0, 480), torch.bool)]
        assert same([weight], [given])


@pytest.mark.parametrize("text", PATTERNS)
def test_a_projection_is_written_into_what_fits_and_into_nothing_else(text, in_torch):
    weight, pattern = tied(0, torch.float32), parse(text)
    out = torch.full_like(weight, torch.nan).requires_grad_()
    found = weight_ops.project(weight.T.contiguous().T, pattern, out)
    assert found.data_ptr() == out.data_ptr() and same([out], [weight_ops.project(weight, pattern)])
    for wrong in (out.detach().double(), out.detach()[:20], out.detach().T.contiguous().T, out.detach().to("meta")):
        with pytest.raises(
            ValueError, match=r"^out is .* it needs a contiguous torch\.float32 of shape \(40, 480\) on cpu"
        ) as refused:
            weight_ops.project(weight, pattern, wrong)
        assert ("cpu, not contiguous; it needs" in str(refused.value)) != wrong.is_contiguous()


@pytest.mark.parametrize("text", PATTERNS)
def test_a_nan_is_in_no_mask_whoever_makes_it(text, in_torch):
    weight = tied(0, torch.float32)
    weight[7, 9] = weight[30, 2] = -torch.nan
    for act in (weight_ops.project, weight_ops.nearest_mask, weight_ops.magnitude_mask):
        with pytest.raises(ValueError, match=r"2 NaN of 19200; a mask needs numbers\."):
            act(weight, parse(text))


def test_a_kernel_that_met_a_nan_names_it_if_it_is_still_there():
    assert [weight_ops.run_refusing_nan(lambda *_, factor: factor, factor=n) for n in (0, 1, 7 << 32)] == [
        0,
        1,
        7 << 32,
    ]
    with pytest.raises(ValueError, match="1 NaN of 2"):
        weight_ops.run_refusing_nan(lambda *_: -1, torch.ones(3), torch.tensor([torch.nan, 1.0]))
    with pytest.raises(ValueError, match="held a NaN; a mask needs numbers"):
        weight_ops.run_refusing_nan(lambda *_: -1, torch.ones(3), torch.ones(2))


@pytest.mark.parametrize("text", ["2:4", "1:2", "4:8"])
def test_the_torch_form_of_an_operation_counts_what_its_kernels_count(text):
    """Changed entries of a mask, and how many it kept before, 32 bits higher."""
    pattern, weight, other = parse(text), tied(0, torch.float32), tied(1, torch.float32)
    old, new = torch.rand(weight.shape, generator=generator()) < 0.3, mask_of(weight, pattern)
    before = mask_of(other, pattern)
    after = mask_of(weight - torch.where(before, 0, other), pattern)
    with reference_only():
        for operation, tensors, count in [
            (weight_ops.MAGNITUDE_MASK, (weight, old), 0),
            (weight_ops.PROJECT, (weight, other), 0),
            (weight_ops.KEEP, (weight, old), 0),
            (weight_ops.KEPT, (weight, old, other), 0),
            (weight_ops.REMASK, (weight, old, other), int((old ^ new).sum()) | int(old.sum()) << 32),
            (weight_ops.ADMM_UPDATE, (weight, other), int((before ^ after).sum())),
            (weight_ops.ADMM_UPDATE, (weight[:0], other[:0]), 0),
        ]:
            assert operation.reference(pattern, *(tensor.clone() for tensor in tensors)) == count, operation.name


@pytest.mark.parametrize("text", ["2:4", "unstructured:0.4"])
def test_kernels_and_torch_write_the_same_bits_and_counts(text, monkeypatch):
    monkeypatch.setattr(base, "MIN_NUMEL", 0)
    pattern, weight, other = parse(text), tied(0, torch.float32), tied(1, torch.float32)
    old = torch.rand(weight.shape, generator=generator()) < 0.3

    def results():
        mask, dense, shown, r = old.clone(), other.clone(), weight.clone(), other.clone()
        changes = [
            weight_ops.remask(shown, mask, dense, pattern),
            weight_ops.admm_update(weight, r, pattern, False, True),
        ]
        masks = [weight_ops.magnitude_mask(weight, pattern), weight_ops.nearest_mask(weight, pattern)]
        return [mask, dense, shown, r, *changes, *masks, weight_ops.project(weight, pattern)]

    found = results()
    with reference_only():
        assert same(found, results())
    for act in (weight_ops.project, weight_ops.nearest_mask, weight_ops.magnitude_mask):
        with pytest.raises(ValueError, match=r"1 NaN of 19200"):
            act(torch.where(torch.arange(480) + torch.arange(0, 19200, 480)[:, None] == 77, torch.nan, weight), pattern)


class Passes(TorchDispatchMode):
    """Counts the operations of torch that read or write as many entries as a weight has."""

    def __init__(self, numel):
        super().__init__()
        self.numel, self.names = numel, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves((args, kwargs, found)) if isinstance(x, torch.Tensor)]
        if max(sizes, default=0) >= self.numel and not func.is_view:
            self.names.append(func.overloadpacket.__name__)
        return found


@pytest.mark.parametrize("text", ["2:4", "unstructured:0.4"])
def test_large_weights_are_written_by_kernels_in_one_pass_and_transposed_ones_are_copied_first(text, monkeypatch):
    """Torch gives the same bits, so that nothing else would tell."""
    pytest.importorskip("numba", reason="the kernels for CPUs need numba")
    monkeypatch.setattr(base, "MIN_NUMEL", 0)
    pattern, weight = parse(text), tied(0, torch.float32, (64, 64))
    mask, other = weight > 0, tied(1, torch.float32, (64, 64))
    acts = {"magnitude_mask": lambda w: weight_ops.magnitude_mask(w, pattern)}
    if pattern.kind == "nm":
        acts |= {
            "project": lambda w: weight_ops.project(w, pattern),
            "project into": lambda w: weight_ops.project(w, pattern, other.clone()),
            "keep": lambda w: weight_ops.keep(other, mask),
            "kept": lambda w: weight_ops.kept(weight, mask, other),
            "remask": lambda w: weight_ops.remask(other, mask, weight.clone(), pattern),
            "admm_update": lambda w: weight_ops.admm_update(other, weight.clone(), pattern, False, True),
        }
    for name, act in acts.items():
        act(weight)  # and compile the kernel
        for given, copies in ((weight, []), (weight.T, ["clone"])):
            with Passes(weight.numel()) as passes:
                act(given)
            assert [each for each in passes.names if each not in ("empty", "empty_like")] == [
                *(copies if name in ("magnitude_mask", "project", "project into") else []),
                *(["clone"] if name in ("project into", "remask", "admm_update") else []),
            ], name


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_large_weights_have_a_kernel_for_each_operation_and_halves_for_those_that_overwrite_nothing(dtype, monkeypatch):
    pytest.importorskip("numba", reason="the kernels for CPUs need numba")
    monkeypatch.setattr(base, "MIN_NUMEL", 0)
    weight, pattern = torch.randn(16, 64).to(dtype), parse("2:4")
    mask = weight > 0
    for operation, groups, tensors, halves in (
        (weight_ops.KEEP, weight_ops.ANY_FOUR, (weight, mask), False),
        (weight_ops.KEPT, weight_ops.ANY_FOUR, (weight, mask, weight), True),
        (weight_ops.PROJECT, pattern, (weight, weight), True),
        (weight_ops.MAGNITUDE_MASK, pattern, (weight, mask), True),
        (weight_ops.REMASK, pattern, (weight, mask, weight), False),
        (weight_ops.ADMM_UPDATE, pattern, (weight, weight), False),
    ):
        found = weight_ops.kernel_of(operation, groups, *tensors) is not None
        assert found == (dtype == torch.float32 or (halves and dtype != torch.float64)), operation.name
        with reference_only():
            assert weight_ops.kernel_of(operation, groups, *tensors) is None


def test_the_torch_form_of_keeping_writes_what_is_kept():
    weight, mask = tied(0, torch.float32), torch.rand((40, 480), generator=generator()) < 0.3
    given, out, expected = weight.clone(), torch.ones_like(weight), torch.where(mask, weight, 0.0) + 0
    with reference_only():
        weight_ops.KEEP.reference(parse("2:4"), given, mask)
        weight_ops.KEPT.reference(parse("2:4"), weight, mask, out)
    assert same([given, out], [expected, expected])


# -- the update of ADMM in parts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["2:4", "3:5", "16:32", "2:4-transposable"])
@pytest.mark.parametrize("part", [64, 1000, 4096, 2**20])
def test_parts_of_one_size_make_the_whole_and_groups_are_not_cut(part, text, monkeypatch):
    monkeypatch.setattr(weight_ops, "PART", part)
    pattern, weight, r = parse(text), tied(0, torch.float32), tied(1, torch.float32)
    parts = weight_ops._parts(pattern, weight, r)
    assert all(torch.equal(torch.cat([each[k].flatten() for each in parts]), (weight, r)[k].flatten()) for k in (0, 1))
    assert all(one.data_ptr() - weight.data_ptr() == two.data_ptr() - r.data_ptr() for one, two in parts)
    if pattern.kind != "nm" or part > weight.numel():
        assert len(parts) == 1
        return
    *sizes, last = [len(one) for one, _ in parts]
    unit = 8 * pattern.m
    assert len({*sizes}) == 1 and sizes[0] % unit == 0 and last % pattern.m == 0
    assert last <= sizes[0] < max(part, unit) + unit and len(parts) <= math.ceil(weight.numel() / part)
    assert len(weight_ops._parts(pattern, weight.T.contiguous().T, r)) == 1


@pytest.mark.parametrize("dual", [True, False])
def test_an_update_of_an_empty_weight_changes_nothing(dual):
    for first, change in ((True, None), (False, [0, 0, 0])):
        found = weight_ops.admm_update(torch.ones(0, 8), torch.ones(0, 8), parse("2:4"), first, dual)
        assert (found if found is None else found.tolist()) == change


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("dual", [True, False])
@pytest.mark.parametrize("text", ["unstructured:0.4", "block:4:0.5"])
def test_the_update_of_a_shared_part_is_that_of_the_whole(text, dual, scale):
    layer, pattern = find_layers(make_bert())[0], parse(text)
    weights = [tied(seed, torch.float32, layer.shape) for seed in range(3)]
    found = []
    with group_of_one() as shards:
        for each in (pattern, SharedPattern(pattern, WeightPart(shards, layer))):
            r, changes = torch.full(layer.shape, torch.nan), []
            for weight in weights:
                changes.append(weight_ops.admm_update(weight, r, each, not changes, dual, scale))
            found.append((r, changes))
    (whole, changes), (part, others) = found
    assert same([whole], [part]) if not dual else torch.equal(whole, part)
    assert changes[0] is others[0] is None and [*map(torch.Tensor.tolist, changes[1:])] == [
        *map(torch.Tensor.tolist, others[1:])
    ]


@pytest.mark.parametrize("text", ["2:4", "2:4-transposable", "unstructured:0.4", "block:4x4:0.5"])
def test_masks_and_updates_stay_on_the_device_of_the_weight(text):
    pattern, weight = parse(text), torch.randn(8, 16, generator=generator(3))
    with reference_only():
        assert_stays_on_device(weight_ops.magnitude_mask, weight, pattern)
        results = []
        for device in ("cpu", "meta"):
            r = torch.ones_like(weight)
            with torch.device(device):
                for first in (True, False):
                    changed = weight_ops.admm_update(weight, r, pattern, first, dual=True, scale=0.5)
            results.append((r, changed.cpu() if device == "cpu" else None))
    assert torch.equal(results[0][0], results[1][0])
