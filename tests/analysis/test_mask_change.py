"""Mask similarity and flip rate, against values worked out by hand."""

import pytest
import torch

import nxm_hf
from nxm_hf import analysis
from nxm_hf.patterns import parse


def test_similarity_and_flip_rate_of_a_worked_pair():
    before, mask = (torch.tensor([int(bit) for bit in bits]) for bits in ("11001010", "10101010"))
    assert nxm_hf.analysis.mask_similarity(mask, before) == 0.75
    assert nxm_hf.analysis.flip_rate(mask, before) == 0.25


def test_similarity_is_the_share_of_what_was_kept_before():
    few, more = torch.tensor([True, False, False, False]), torch.tensor([True, True, True, True])
    assert analysis.mask_similarity(more, few) == 1.0 and analysis.mask_similarity(few, more) == 0.25
    assert analysis.flip_rate(more, few) == analysis.flip_rate(few, more) == 0.75


@pytest.mark.parametrize("text", ["2:4", "1:4", "5:8", "2:4-transposable"])
def test_for_a_fixed_pattern_the_two_are_one_number(text):
    pattern = parse(text)
    before, mask = (pattern.mask(torch.rand(64, 64)) for _ in range(2))
    similarity = analysis.mask_similarity(mask, before)
    assert analysis.flip_rate(mask, before) == pytest.approx(2 * (1 - similarity) * pattern.density)
    assert similarity == pytest.approx(pattern.density, abs=0.05)  # unrelated masks
    assert analysis.mask_similarity(mask, mask) == 1 and analysis.flip_rate(mask, mask) == 0


def test_a_mask_of_nothing_lost_nothing_and_other_shapes_are_refused():
    nothing = torch.zeros(4, dtype=torch.bool)
    assert analysis.mask_similarity(nothing, nothing) == 1 and analysis.flip_rate(nothing, nothing) == 0
    for measure in (analysis.mask_similarity, analysis.flip_rate):
        with pytest.raises(ValueError, match=r"got \(4,\) and \(2, 2\)"):
            measure(nothing, nothing.view(2, 2))
