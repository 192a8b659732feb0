"""Self-tests pass the torch forms themselves, and fail each fault that a kernel may have."""

import pytest
import torch

from nxm_hf.patterns import parse
from nxm_hf.solvers import base, entry_counts, masked_ops, self_test, transposable_duals, weight_ops
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


def test_one_tile_with_a_poorer_mask_fails_and_any_mask_of_a_tile_of_zeros_does():
    pattern = parse("2:4-transposable")
    for place, fine in ((0, True), (4, False), (64, False)):

        def run(scores, mask, place=place):
            mask.copy_(by_duals(scores, pattern))
            mask[:4, place : place + 4].logical_not_()  # which has two in each row and column as well

        assert self_test.tiles_are_right(run, by_duals, pattern) == fine


def priced(q, n, change=lambda settled: settled):
    """Price tiles in torch, and change what is said of which are settled."""
    rows, cols, unsettled = transposable_duals._prices(q, n, q.shape[-1])
    settled = torch.ones(q.shape[-1], dtype=torch.bool)
    settled[unsettled] = False
    return rows, cols, change(settled)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (8, 16)])
def test_prices_have_to_settle_more_than_half_of_the_tiles_and_just_those_that_they_say(n, m):
    def right(change=lambda settled: settled, shift=0):
        def prices(q, count):
            rows, cols, settled = priced(q, count, change)
            return rows + shift, cols, settled

        return self_test.prices_are_right(prices, n, m, torch.device("cpu"))

    with torch.device("meta"):
        asked = []
        assert not self_test.prices_are_right(lambda q, n: asked.append(q) or [q[0], q[0], q[0, 0] > 0], n, m, "cpu")
    assert asked[0].shape == (m, m, 9) and asked[0].device.type == "cpu" and (asked[0] >= 0).all()
    assert right() and not right(shift=1 << 26)
    for wrong in (torch.logical_not, torch.zeros_like, lambda settled: settled ^ (torch.arange(9) == 4)):
        assert not right(wrong)

    def few(left):
        """Say of prices that settle so many tiles which these are."""

        def prices(q, count):
            rows, cols, settled = priced(q, count)
            spoiled = settled & (settled.cumsum(0) > left)
            return rows + (spoiled << 26).int(), cols, settled & ~spoiled

        return self_test.prices_are_right(prices, n, m, torch.device("cpu"))

    assert few(5) and not few(4)
    for turned in (False, True):  # n full rows have n in each column, and n full columns have n in each row

        def lines(q, count, turned=turned):
            full = torch.where(torch.arange(m)[:, None] < count, -(1 << 26), 1 << 26).int().expand(m, q.shape[-1])
            none = torch.zeros_like(full)
            return *((none, full) if turned else (full, none)), torch.ones(q.shape[-1], dtype=torch.bool)

        assert not self_test.prices_are_right(lines, n, m, torch.device("cpu"))


@pytest.mark.parametrize("wrong", [1, 5000, 10_000])
def test_rows_have_to_hold_the_highest_of_each_number(wrong):
    def run(row, count, mask):
        mask.copy_(keep_highest(row, count - (count == wrong)))

    assert not self_test.row_is_right(run)


def test_a_kernel_that_has_a_substitute_fails_without_a_word_and_tests_run_without_kernels(caplog):
    seen = []
    assert not self_test.passes("quiet", lambda: seen.append(base._kernels_allowed.get()) or False, warns=False)
    assert self_test.passes("fine", lambda: True) and not caplog.messages
    assert seen == [False]


@pytest.mark.parametrize("dtype", base.FLOATS, ids=str)
def test_difficult_numbers_have_ties_zeros_and_each_extreme_wherever_tensors_are_made(dtype):
    with torch.device("meta"):
        numbers = self_test.difficult_numbers(3000, dtype, "cpu", 0, self_test.EXTREMES)
        plain = self_test.difficult_numbers(3000, dtype, "cpu", 0, ())
    assert numbers.device.type == "cpu" and numbers.dtype == plain.dtype == dtype
    assert not torch.equal(plain, self_test.difficult_numbers(3000, dtype, "cpu", 1, ()))
    assert torch.equal(plain, self_test.difficult_numbers(3000, dtype, "cpu", 0, ()))
    assert torch.equal(plain[:1000] * 2, (plain[:1000] * 2).round()) and plain[:1000].signbit().any()
    assert 0.9 < float((plain[1000:] * 2 != (plain[1000:] * 2).round()).float().mean())
    for extreme in torch.tensor(self_test.EXTREMES, device="cpu").to(dtype).view(-1, 1):
        among = self_test.difficult_numbers(3000, dtype, "cpu", 0, self_test.EXTREMES).view(-1, 1)
        assert 30 <= int((among.view(torch.uint8) == extreme.view(torch.uint8)).all(1).sum())


def test_rows_have_to_hold_the_highest():
    assert self_test.row_is_right(lambda row, count, mask: mask.copy_(keep_highest(row, count)))
    assert not self_test.row_is_right(lambda row, count, mask: mask.copy_(keep_highest(row, count - 1)))
