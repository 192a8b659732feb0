"""When kernels may be used: not for small tensors, and not within `reference_only`."""

import math
import threading

import pytest
import torch

from nxm_hf.patterns import NM
from nxm_hf.solvers import base
from nxm_hf.solvers.base import MIN_NUMEL, integer_view, large_enough, reference_only, refuse_nan


def test_kernels_are_for_large_tensors():
    assert large_enough(torch.empty(MIN_NUMEL)) and not large_enough(torch.empty(MIN_NUMEL - 1))


def test_reference_only_holds_until_the_outermost_context_ends_even_by_an_error():
    large = torch.empty(MIN_NUMEL)
    with pytest.raises(RuntimeError, match="stop"), reference_only():
        with reference_only():
            assert not large_enough(large)
        assert not large_enough(large)
        raise RuntimeError("stop")
    assert large_enough(large)


def test_reference_only_holds_for_its_own_thread():
    outcomes = []
    with reference_only():
        thread = threading.Thread(target=lambda: outcomes.append(large_enough(torch.empty(MIN_NUMEL))))
        thread.start()
        thread.join()
    assert outcomes == [True]


def test_infinity_is_the_largest_float_by_its_bits():
    for dtype, bits in base.INFINITY_BITS.items():
        assert integer_view(torch.tensor([torch.inf], dtype=dtype)).item() == bits
        assert integer_view(torch.tensor([torch.finfo(dtype).max], dtype=dtype)).item() == bits - 1


def test_only_a_nan_is_refused():
    """Whole numbers hold none, and neither do infinities whose sum is one."""
    for scores in (torch.arange(4), torch.tensor([math.inf, -math.inf]), torch.tensor([3e38, 3e38]), torch.empty(0)):
        refuse_nan(scores)
    with pytest.raises(ValueError, match="1 NaN of 3"):
        refuse_nan(torch.tensor([math.inf, torch.nan, -math.inf]))


def test_masks_are_made_on_the_device_of_their_scores():
    scores = [torch.ones(2, 3), torch.ones(4, dtype=torch.bfloat16)]
    with torch.device("meta"):
        masks = base.mask_buffers(scores, None)
        alone = base.solve_alone(lambda each, pattern, out: out[0].copy_(each[0] > 0), scores[0], NM(1, 3))
    assert [(mask.shape, mask.dtype, mask.device.type) for mask in (*masks, alone)] == [
        ((2, 3), torch.bool, "cpu"),
        ((4,), torch.bool, "cpu"),
        ((2, 3), torch.bool, "cpu"),
    ]
    assert alone.all()


@pytest.mark.parametrize("by_list", [True, False])
def test_a_solver_fills_the_masks_of_a_list_whether_it_has_a_function_for_lists_or_for_one(by_list):
    scores = [torch.tensor([[1.0, 0.0, 3.0]]), torch.tensor([[0.0, 2.0, 0.0], [4.0, 0.0, 5.0]])]

    def fill(scores, pattern, masks):
        for each, mask in zip(scores, masks, strict=True):
            mask.copy_(each > pattern.n)

    solver = base.Solver(lambda each, pattern: each > pattern.n, list_function=fill if by_list else None)
    masks = base.mask_buffers(scores, None)
    solver.fill(scores, NM(1, 3), masks)
    assert [mask.tolist() for mask in masks] == [(each > 1).tolist() for each in scores]
    assert all(torch.equal(solver(each, NM(1, 3)), mask) for each, mask in zip(scores, masks, strict=True))
    assert solver.supports(scores[0], NM(1, 3))


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ([], "There are 1 tensors of scores and 0 in out"),
        ([torch.empty(2, 3)], "out holds a torch.float32 of shape"),
        ([torch.empty(3, 2, dtype=torch.bool)], r"of shape \(3, 2\) on cpu for scores of shape \(2, 3\)"),
        ([torch.empty(2, 3, dtype=torch.bool, device="meta")], "on meta for scores"),
        ([torch.empty(3, 2, dtype=torch.bool).T], "must be contiguous"),
    ],
    ids=["number", "dtype", "shape", "device", "strides"],
)
def test_a_mask_that_cannot_be_written_into_is_refused(out, says):
    scores = [torch.ones(2, 3)]
    with pytest.raises(ValueError, match=says):
        base.mask_buffers(scores, out)
    fits = [torch.empty(2, 3, dtype=torch.bool)]
    assert base.mask_buffers(scores, fits)[0] is fits[0]


def test_an_operation_says_if_it_overwrites_takes_a_nan_or_no_infinity_or_a_number():
    """If it says nothing it does none of these."""
    plain = base.Operation("plain", len, ("float",))
    said = base.Operation("plain", len, ("float",), in_place=False, refuses_nan=True, finite=False, factors=())
    assert plain == said and plain.reference is len


def test_patterns_are_told_apart_by_their_kind():
    kinds = {kind: type(kind, (), {"kind": kind})() for kind in ("nm", "shared", "transposable", "block")}
    assert {kind for kind, pattern in kinds.items() if base.is_nm(pattern)} == {"nm"}
    assert {kind for kind, pattern in kinds.items() if base.is_shared(pattern)} == {"shared"}
    assert base.Solver(len).supports is base.supports_all and base.Solver(len).list_function is None
    assert base.supports_all(torch.empty(0), kinds["nm"]) is True and base.Solver(len).__name__ == "len"
