"""`asp`: its scores."""

import pytest

from nxm_hf import NxMConfig


def test_asp_names_the_scores_it_knows():
    known = "'magnitude', 'fisher', 'wanda', 'sparsegpt', 'adaprune', 'alps'"
    with pytest.raises(ValueError, match=f"one of {known}; got 'random'"):
        NxMConfig("asp", settings={"scores": "random"})
