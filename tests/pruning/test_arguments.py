"""Arguments of `prune` in another place or by another name: what is said, and what is let through."""

import pytest

from nxm_hf import pruners
from nxm_hf.pruning.arguments import check_order, check_settings
from tests.support.models import make_bert

ARGUMENTS = ("pattern", "method", "calibration", "samples", "length")


@pytest.mark.parametrize("method", pruners.names())
def test_no_method_is_taken_for_a_pattern(method):
    with pytest.raises(ValueError, match=rf"Write method='{method}'\."):
        check_order(make_bert(), method)


@pytest.mark.parametrize("pattern", ["2:4", {"ffn": "2:4"}, "dense"])
def test_patterns_of_all_forms_are_let_through(pattern):
    check_order(make_bert(), pattern)


@pytest.mark.parametrize("method", pruners.names())
def test_settings_of_the_method_are_let_through_and_those_of_another_library_are_translated(method):
    check_settings(method, pruners.settings(method), ARGUMENTS)
    for theirs, ours in {
        "nsamples": "samples",
        "seqlen": "length",
        "sparsity": "pattern",
        "dataset": "calibration",
    }.items():
        with pytest.raises(ValueError, match=f"prune has no {theirs}=; write {ours}="):
            check_settings(method, {theirs: 1}, ARGUMENTS)


def test_a_name_near_nothing_is_left_to_the_method():
    check_settings("magnitude", {"zzz": 1}, ARGUMENTS)
