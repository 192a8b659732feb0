"""Operations of masked training, in torch and by kernels: the bits of a formula with one tensor for each term."""

from inspect import signature

import pytest
import torch

from nxm_hf.patterns import parse
from nxm_hf.solvers import base, masked_ops, reference_only, weight_ops
from tests.support.toy_training import same

torch.set_num_threads(1)
INF, NAN = float("inf"), float("nan")
SHAPES = [(16, 64), (7, 12), (1, 4), (0, 8), (130, 512)]  # with and without a kernel, and in one row
GAINS = [0.0, 1e-45, 0.3, 1.0, 1.5, 2.5]
PATTERN = parse("2:4")


@pytest.fixture(autouse=True)
def kernels_for_every_size(monkeypatch):
    monkeypatch.setattr(base, "MIN_NUMEL", 0)


def numbers(shape, seed, dtype=torch.float32):
    """Draw numbers with ties, zeros of both signs and the smallest ones among them."""
    found = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    found[found.abs() < 0.2] *= 0.0  # of both signs
    found[(found > 0.2) & (found < 0.3)] = 1e-45
    return found.to(dtype)


def of(shape, dtype=torch.float32):
    """Make W, a mask of something else, and D."""
    return numbers(shape, 0, dtype), PATTERN.mask(numbers(shape, 1).abs()), numbers(shape, 2, dtype)


def scaled(x, mask, factor):
    return x * torch.where(mask, torch.ones((), dtype=x.dtype), torch.tensor(factor, dtype=x.dtype))


@pytest.mark.parametrize("module", [masked_ops, weight_ops], ids=lambda module: module.__name__)
def test_kernels_are_tried_with_numbers_if_and_only_if_they_take_one(module):
    """A trial without a number fails, and the kernel is never used again."""
    operations = [value for value in vars(module).values() if isinstance(value, base.Operation)]
    takes = [operation.name for operation in operations if "factor" in signature(operation.reference).parameters]
    assert operations and takes == [operation.name for operation in operations if operation.factors]
    for factors in (operation.factors for operation in operations if operation.factors):
        assert min(factors) == 0 and any(0 < factor < 1 for factor in factors) and max(factors) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_large_weights_of_single_precision_have_a_kernel_for_each_operation(dtype):
    """And no others, because all of them overwrite what they read."""
    pytest.importorskip("numba", reason="the kernels for CPUs need numba")
    tensors = of((64, 64), dtype)
    for operation in (value for value in vars(masked_ops).values() if isinstance(value, base.Operation)):
        groups = PATTERN if operation.name.startswith("remask") else masked_ops.ANY_FOUR
        found = masked_ops.kernel_of(operation, groups, *tensors[: len(operation.inputs)])
        assert (found is not None) == (dtype == torch.float32), operation.name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("gain", GAINS)
def test_a_forward_weight_is_the_dense_one_with_its_pruned_entries_times_the_gain(gain, dtype, tier):
    for shape in SHAPES:
        weight, mask, dense = of(shape, dtype)
        given, before, (w, d) = weight.clone(), mask.clone(), (torch.empty_like(weight) for _ in range(2))
        masked_ops.show_masked(dense, mask, w, gain)
        assert same([w], [scaled(dense, mask, gain)])
        masked_ops.store_dense(weight, mask, d, gain)
        assert same([d, weight, mask], [given, scaled(given, mask, gain), before])
        masked_ops.scale_pruned(d, mask, gain)
        assert same([d], [weight])
        masked_ops.scale_pruned(d, mask)
        assert same([d], [scaled(weight, mask, 0.0)])


@pytest.mark.parametrize("gain", GAINS)
@pytest.mark.parametrize("text", ["2:4", "1:4", "4:8", "16:32", "2:4-transposable", "unstructured:0.5"])
def test_a_new_mask_is_that_of_the_dense_weight_and_is_used_at_once(text, gain, tier):
    pattern = parse(text)
    dense, mask = numbers((64, 64), 0), PATTERN.mask(numbers((64, 64), 1).abs())
    new = pattern.largest(dense)
    change = [int((new & ~mask).sum()), int((mask & ~new).sum()), int(mask.sum())]
    shown, masks = torch.empty_like(dense), [mask.clone(), mask.clone()]
    assert masked_ops.remask_and_show(dense, masks[0], shown, pattern, gain).tolist() == change
    weight, stored = dense.clone(), torch.empty_like(dense)
    assert masked_ops.remask_and_store(weight, masks[1], stored, pattern, gain).tolist() == change
    assert same([*masks, shown, weight, stored], [new, new, *[scaled(dense, new, gain)] * 2, dense])


@pytest.mark.parametrize("factor", [0.0, 2e-4, -0.02, 3.0])
def test_a_pull_adds_pruned_entries_of_the_dense_weight(factor, tier):
    for shape in SHAPES:
        grad, mask, dense = of(shape)
        expected = grad.double() + torch.tensor(factor).double() * torch.where(mask, 0.0, dense).double()
        masked_ops.pull_pruned(grad, mask, dense, factor)
        assert torch.allclose(grad.double(), expected, rtol=2**-22, atol=1e-44)
        shrunk = dense.clone()
        masked_ops.pull_pruned(shrunk, mask, shrunk, factor)
        assert torch.equal(shrunk[mask], dense[mask])
        assert torch.allclose(shrunk[~mask], dense[~mask] * (1 + factor), rtol=2**-20, atol=1e-44)


def test_kernels_pull_with_the_bits_of_torch():
    pytest.importorskip("numba", reason="the kernels for CPUs need numba")
    for factor in (0.0, 2e-4, -0.02, 3.0):
        grad, mask, dense = of((64, 64))
        ours, theirs = ([grad.clone(), dense.clone()] for _ in range(2))
        masked_ops.pull_pruned(ours[0], mask, ours[1], factor)
        masked_ops.pull_pruned(ours[1], mask, ours[1], factor)
        with reference_only():
            masked_ops.pull_pruned(theirs[0], mask, theirs[1], factor)
            masked_ops.pull_pruned(theirs[1], mask, theirs[1], factor)
        assert same(ours, theirs)


def test_a_scaled_gradient_is_called_free_of_nan_only_if_it_is(tier):
    """A pruned infinity times 0 is a NaN, and what comes after it is scaled all the same."""
    for value, pruned in [(1.0, True), (INF, True), (-INF, False), (NAN, True), (NAN, False)]:
        for place in (0, 2000, 4095):
            grad, mask, _ = of((64, 64))
            grad.view(-1)[place], mask.view(-1)[place] = value, not pruned
            expected = grad * mask
            clean = masked_ops.scale_pruned(grad, mask)
            assert torch.equal(grad.isnan(), expected.isnan()) and same(
                [grad.nan_to_num(7.0)], [expected.nan_to_num(7.0)]
            )
            assert not clean or not bool(grad.isnan().any())
            if tier == "kernels" and masked_ops.kernel_of(masked_ops.SCALE, masked_ops.ANY_FOUR, grad, mask):
                assert clean is not bool(grad.isnan().any())


def test_a_nan_is_refused_before_a_mask_is_made_of_it(tier):
    for act in (masked_ops.remask_and_show, masked_ops.remask_and_store):
        for gain in (0.0, 0.5):
            weight, mask, dense = of((64, 64))
            weight[3, 5] = NAN
            with pytest.raises(ValueError, match="NaN"):
                act(weight, mask, dense, PATTERN, gain)


@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_the_torch_form_of_an_operation_writes_and_counts_what_its_kernel_does(factor):
    weight, mask, dense = of((16, 64))
    scaled_weight = scaled(weight, mask, factor)
    pulled = weight + factor * torch.where(mask, 0.0, dense)
    new = PATTERN.largest(weight)
    counts = int((mask ^ new).sum()) | int(mask.sum()) << 32
    for operation, results, count in [
        (masked_ops.SCALE, [scaled_weight, mask], 0),
        (masked_ops.PULL, [pulled, mask, dense], 0),
        (masked_ops.STORE, [scaled_weight, mask, weight], 0),
        (masked_ops.SHOW, [weight, mask, scaled_weight], 0),
        (masked_ops.REMASK_WITH_GAIN, [scaled(weight, new, factor), new, weight], counts),
        (masked_ops.REMASK_FROM, [weight, new, scaled(weight, new, factor)], counts),
    ]:
        tensors = [each.clone() for each in (weight, mask, dense)[: len(operation.inputs)]]
        with reference_only():
            assert operation.reference(PATTERN, *tensors, factor=factor) == count, operation.name
        for found, expected in zip(tensors, results, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-44)


@pytest.mark.parametrize("module", [masked_ops, weight_ops], ids=lambda module: module.__name__)
def test_an_operation_says_whether_it_refuses_nan(module):
    for operation in (value for value in vars(module).values() if isinstance(value, base.Operation)):
        weight, mask, dense = of((16, 64))
        weight[3, 5] = NAN
        tensors = [weight, *([mask, dense] if "mask" in operation.inputs[1:2] else [dense])][: len(operation.inputs)]
        numbers_of = {"factor": 0.5} if operation.factors else {}
        with reference_only():
            try:
                refuses = operation.reference(PATTERN, *tensors, **numbers_of) == -1
            except ValueError:
                refuses = True
        assert refuses is operation.refuses_nan, operation.name
