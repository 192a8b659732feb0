"""Mask diversity, against published numbers and masks that are all written down."""

import math
from itertools import product

import pytest
import torch

from nxm_hf import analysis
from nxm_hf.analysis.diversity import transposable_tiles
from nxm_hf.patterns import Transposable, parse

WORKED = {  # of 8x8 weights: pattern, exact, count, log10 of it per weight
    "unstructured:0.5": (True, 1.83e18, 0.285),
    "4:8": (True, 5.77e14, 0.231),
    "2:4": (True, 2.82e12, 0.195),
    "4:8-transposable": (True, 1.17e11, 0.173),
    "2:4-transposable": (True, 90.0**4, 0.122),
}


@pytest.mark.parametrize("text", WORKED)
def test_diversity_of_worked_examples(text):
    exact, count, each = WORKED[text]
    found = analysis.mask_diversity(text, 64, exact)
    assert 10**found == pytest.approx(count, rel=3e-3) and found / 64 == pytest.approx(each, abs=5e-4)
    assert analysis.mask_diversity(text, 64 * 7) == pytest.approx(7 * found, rel=0.05)


@pytest.mark.parametrize("text, count", [("4:8-transposable", 1.756e13), ("2:4-transposable", 4.30e8)])
def test_diversity_by_the_formula_of_the_paper(text, count):
    assert 10 ** analysis.mask_diversity(text, 64, exact=False) == pytest.approx(count, rel=3e-3)
    assert analysis.mask_diversity(text, 64, exact=False) > analysis.mask_diversity(text, 64)


def test_the_claim_of_the_paper_holds_by_its_formula_and_not_exactly():
    structured = analysis.mask_diversity("2:4", 64)
    assert analysis.mask_diversity("4:8-transposable", 64, exact=False) > structured
    assert analysis.mask_diversity("4:8-transposable", 64) < structured


def test_the_formula_is_exact_for_what_is_not_transposable():
    for text in ("2:4", "unstructured:0.3", "block:4x4:0.5", "block:4:0.25", "dense"):
        assert analysis.mask_diversity(text, 64, exact=False) == analysis.mask_diversity(text, 64)


def _holds(text: str, mask: torch.Tensor) -> bool:
    return int(mask.count_nonzero()) == parse(text).kept(mask.shape) and parse(text).violations(mask) == 0


@pytest.mark.parametrize(
    "text, shape",
    [
        *(("2:4", (1, 12)), ("1:3", (2, 6)), ("unstructured:0.3", (1, 10)), ("block:2:0.5", (1, 12))),
        *(("block:2x2:0.5", (2, 6)), ("1:4-transposable", (4, 4))),
    ],
)
def test_diversity_counts_the_masks_that_there_are(text, shape):
    """The reference writes them all down."""
    numel = math.prod(shape)
    masks = (torch.tensor(bits).view(shape) for bits in product((0, 1), repeat=numel))
    count = sum(_holds(text, mask) for mask in masks)
    assert 10 ** analysis.mask_diversity(text, numel) == pytest.approx(count, rel=1e-9)


@pytest.mark.parametrize(
    "n, m, count",
    [
        *((2, 4, 90), (1, 4, 24), (3, 4, 24), (1, 8, 40320)),
        *((4, 8, 116963796250), (2, 8, 187530840), (6, 8, 187530840)),
        *((2, 5, 2040), (3, 6, 297200)),  # OEIS A001499 and A001501
    ],
)
def test_transposable_tiles_are_counted_exactly(n, m, count):
    assert transposable_tiles(n, m) == count


def test_diversity_knows_patterns_as_objects_and_does_not_make_what_cannot_be_trained():
    assert analysis.mask_diversity(Transposable(2, 4), 16) == pytest.approx(math.log10(90))
    assert analysis.mask_diversity("dense", 12) == 0
    assert math.isfinite(analysis.mask_diversity("unstructured:0.5", 10**9))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("2:4", 7), "7 weights do not split into groups of 4"),
        (("2:4-transposable", 40), "do not split into groups of 16"),
        (("2:4", -4), "got -4"),
        (("2:4", 4.0), "got 4.0"),
        (("half", 4), "There is no pattern 'half'"),
        (("8:4-transposable", 64), "Write '4:8'"),
        (("16:32-transposable", 1024), "exact=False"),
    ],
)
def test_diversity_refuses_what_it_cannot_count(arguments, message):
    with pytest.raises(ValueError, match=message):
        analysis.mask_diversity(*arguments)
