"""The roles and groups, and how the table of a family is read."""

import pytest

from nxm_hf.families import GROUPS, ROLES, Family


def test_the_roles_and_groups_are_those_of_the_contract():
    assert ROLES == (
        *("query", "key", "value", "qkv", "attention_output", "ffn_in", "ffn_out"),
        *("cross_query", "cross_key", "cross_value", "cross_output", "other"),
    )
    assert GROUPS["ffn"] == ("ffn_in", "ffn_out")
    assert set(GROUPS["attention"]) == set(ROLES) - {"ffn_in", "ffn_out", "other"}


def test_the_longest_end_of_whole_components_gives_the_role():
    family = Family("toy", ("toy",), {"dense": "other", "output.dense": "ffn_out", "a.output.dense": "key"})
    assert family.role("layer.0.dense") == "other"
    assert family.role("layer.0.output.dense") == "ffn_out"
    assert family.role("layer.0.a.output.dense") == "key"
    assert family.role("layer.0.ba.output.dense") == "ffn_out"
    assert family.role("layer.0.layout_output.dense") == "other"
    assert family.role("layer.0.denser") is None


def test_a_family_with_an_unknown_role_is_refused():
    with pytest.raises(ValueError, match="Family toy gives 'q' the role 'querry'; the roles are query, key"):
        Family("toy", ("toy",), {"q": "querry"})
