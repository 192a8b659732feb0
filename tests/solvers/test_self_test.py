"""Self-tests pass the torch forms themselves, and fail each fault that a kernel may have."""

import pytest
import torch

from nxm_hf.patterns import parse
from nxm_hf.solvers import base, entry_counts, masked_ops, self_test, weight_ops
from nxm_hf.solvers.backend import MASK
from nxm_hf.solvers.transposable_duals import by_duals
from nxm_hf.solvers.unstructured_threshold import keep_highest
from tests.support.references import top
from tests.support.toy_training import same

OPERATIONS = [
    MASK,
    weight_ops.MAGNITUDE_MASK,
    weight_ops.PROJECT,
    weight_ops.KEEP,
    weight_ops.REMASK,
    weight_ops.ADMM_UPDATE,
    masked_ops.SCALE,
    masked_ops.PULL,
    masked_ops.STORE,
    masked_ops.SHOW,
    masked_ops.REMASK_WITH_GAIN,
    masked_ops.REMASK_FROM,
    entry_counts.COUNT_STRAYS,
]
PATTERN = parse("2:4")
each_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)


def written_out(operation, *tensors, factor=0.0):
    """Do an operation in plain words, by a ranking: what the reference of every self-test has to give."""

    def mask(scores):
        return top(scores, PATTERN)

    first, second, *rest = tensors
    if operation.refuses_nan and any(bool(x.isnan().any()) for x in tensors if x.is_floating_point()):
        return -1
    if operation.name in ("mask", "magnitude_mask"):
        second.copy_(mask(first if operation is MASK else first.abs()))
    if operation.name == "project":
        second.copy_(torch.where(mask(first.abs()), first, 0) + 0)
    if operation.name == "keep":
        first.copy_(torch.where(second, first, 0) + 0)
    count = 0
    if operation.name == "count_strays":
        strays = (first != 0) & ~second | (first == 0) & first.signbit()
        return int(strays.sum()) + int((second.view(-1, PATTERN.m).sum(1) > PATTERN.n).sum())
    if "remask" in operation.name:
        new = mask(first.abs())
        count = int((second ^ new).sum()) | int(second.sum()) << 32
        second.copy_(new)
    by = torch.where(second, 1.0, torch.tensor(factor)) if second.dtype == torch.bool else None
    if operation.name in ("remask", "remask_with_gain", "store"):
        rest[0].copy_(first)
    if operation.name in ("remask", "remask_with_gain", "store", "scale"):
        first.mul_(by)
    if operation.name in ("remask_from", "show"):
        rest[0].copy_(first * by)
    if operation.name == "pull":
        first.add_(rest[0] * ~second, alpha=factor)
    if operation.name == "admm_update":
        before = mask(second.abs())
        v = first - torch.where(before, 0, second)
        after = mask(v.abs())
        second.copy_(torch.where(after, v, -v))
        return int((before ^ after).sum())
    return count


def right(operation, run, dtype=torch.float32):
    return self_test.passes("of a test", lambda: self_test.operation_is_right(run, operation, PATTERN, dtype, "cpu"))


@each_operation
def test_the_torch_form_does_what_the_operation_says(operation):
    for dtype in base.FLOATS[:1] if operation.in_place else base.FLOATS:
        assert right(operation, lambda *tensors, **factor: written_out(operation, *tensors, **factor), dtype)


@each_operation
def test_what_an_operation_says_of_itself_is_what_its_torch_form_does(operation):
    """It overwrites floats that it has read, and makes NaN of infinities, or not."""
    overwrites = makes_nan = False
    for number in [{"factor": factor} for factor in operation.factors] or [{}]:
        for infinite in (False, True):
            before = self_test._inputs(operation, PATTERN.m, torch.float32, "cpu", 0)
            if infinite:
                before = [tensor.sign() * torch.inf if tensor.is_floating_point() else tensor for tensor in before]
                before = [tensor.nan_to_num(1.0, torch.inf, -torch.inf) for tensor in before]
            after = [tensor.clone() for tensor in before]
            try:
                with base.reference_only():
                    operation.reference(PATTERN, *after, **number)
            except ValueError:  # it refuses the NaN that it has made
                makes_nan = infinite
            floats = [pair for pair in zip(before, after, strict=True) if pair[0].is_floating_point()]
            overwrites |= not all(same([x], [y]) for x, y in floats)
            makes_nan |= infinite and any(bool(tensor.isnan().any()) for _, tensor in floats)
    assert operation.in_place == (overwrites and operation.name != "project")  # whose second tensor is the result
    assert operation.finite == makes_nan


@each_operation
@pytest.mark.parametrize("number", range(3))
def test_one_wrong_bit_in_any_tensor_fails(operation, number, caplog):
    if number >= len(operation.inputs):
        number = 0

    def run(*tensors, **factor):
        count = written_out(operation, *tensors, **factor)
        tensors[number].view(torch.uint8)[5] ^= 1
        return count

    assert not right(operation, run)
    assert "of a test does not work here, so torch does its work: its result differs from torch's" in caplog.text


@each_operation
def test_a_wrong_count_fails(operation):
    assert not right(operation, lambda *tensors, **factor: written_out(operation, *tensors, **factor) + 1)


@pytest.mark.parametrize("operation", [each for each in OPERATIONS if each.refuses_nan], ids=lambda each: each.name)
def test_a_nan_that_is_not_refused_fails(operation):
    assert not right(operation, lambda *tensors, **factor: max(written_out(operation, *tensors, **factor), 0))


def test_an_error_fails_and_is_shown(caplog):
    def run(*tensors):
        raise RuntimeError("no such instruction")

    assert not right(MASK, run)
    assert "RuntimeError('no such instruction')" in caplog.text


def test_tiles_have_to_be_as_good_as_the_solvers_and_to_hold_the_pattern():
    pattern = parse("2:4-transposable")

    def solved(scores, mask):
        mask.copy_(by_duals(scores, pattern))

    def poor(scores, mask):
        mask.copy_(by_duals(-scores, pattern))

    def short(scores, mask):
        solved(scores, mask)
        mask[0, 0] ^= True

    assert self_test.tiles_are_right(solved, by_duals, pattern)
    assert not self_test.tiles_are_right(poor, by_duals, pattern)
    assert not self_test.tiles_are_right(short, by_duals, pattern)


def test_rows_have_to_hold_the_highest():
    assert self_test.row_is_right(lambda row, count, mask: mask.copy_(keep_highest(row, count)))
    assert not self_test.row_is_right(lambda row, count, mask: mask.copy_(keep_highest(row, count - 1)))
