"""What is done to a whole weight, in torch: against the same written out step by step, in one part or in many."""

import pytest
import torch

from nxm_hf.patterns import parse
from nxm_hf.solvers import reference_only, weight_ops
from nxm_hf.solvers.nm_sort import by_sorting
from tests.support.toy_training import same

torch.set_num_threads(1)
INF = float("inf")
PATTERNS = ["2:4", "1:2", "3:4", "4:8", "3:5", "16:32", "4:8-transposable", "unstructured:0.4", "block:4:0.5"]


def tied(seed, dtype, shape=(40, 480)):
    """Zeros of both signs, and many equals."""
    found = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    found[::3] = (found[::3] * 2).round()
    return found


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
