"""The registry of one-shot methods: names, settings, data sheets, and errors that list the right words."""

import inspect

import pytest
import torch

from nxm_hf import pruners
from nxm_hf.patterns import parse
from tests.support.one_shot import (
    layer,
    statistics,
    tokens,
)

OTHERS = {
    "scores": "wanda",
    "bias": "joint",
    "solver": "adam",
    "seed": 1,
    "batch": 20,
    "steps": 3,
    "tolerance": 0.1,
    "rho": 30.0,
}


@pytest.mark.parametrize(
    "name, setting", [(name, setting) for name in pruners.names() for setting in pruners.settings(name)]
)
def test_every_setting_changes_something(name, setting):
    weight, bias = layer()
    start = {"solver": "adam"} if setting in ("seed", "batch") or (name, setting) == ("adaprune", "steps") else {}
    value = OTHERS.get(setting, 0.3)
    one = pruners.make(name, **start)(weight, bias, statistics(tokens()), parse("2:4"))
    other = pruners.make(name, **{**start, setting: value})(weight, bias, statistics(tokens()), parse("2:4"))
    assert not torch.equal(one.weight, other.weight)


@pytest.mark.parametrize("name", pruners.names())
def test_a_method_has_a_data_sheet_and_reads_as_it_prints(name):
    sheet = inspect.getdoc(pruners.METHODS[name])
    assert "Reference: " in sheet and "https://" in sheet and "Relations: " in sheet
    assert pruners.describe(name)[0].endswith(".")
    method = pruners.make(name)
    assert eval(repr(method), vars(pruners)) == method


def test_the_names_are_those_that_a_user_types():
    assert pruners.names() == ["magnitude", "wanda", "sparsegpt", "adaprune", "alps"]


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("sparse", {}, "There is no method 'sparse'.*sparsegpt"),
        ("wanda", {"damping": 1}, "has no settings; got 'damping'"),
        ("sparsegpt", {"damp": 1}, "has the settings damping, bias; got 'damp'"),
        ("sparsegpt", {"damping": -1}, "damping of sparsegpt must be a number of at least 0; got -1"),
        ("sparsegpt", {"bias": "yes"}, "bias of sparsegpt must be one of 'after', 'joint', 'keep'"),
        ("adaprune", {"scores": "l1"}, "scores of adaprune must be one of 'magnitude', 'wanda', 'sparsegpt'"),
        ("adaprune", {"solver": "sgd"}, "solver of adaprune must be one of 'gram', 'adam'"),
        ("adaprune", {"steps": 5}, 'steps=5 is for solver="adam"'),
        ("adaprune", {"solver": "adam", "damping": 0.2}, 'damping=0.2 is for solver="gram"'),
        ("adaprune", {"solver": "adam", "batch": 0}, "batch of adaprune must be a whole number of at least 1; got 0"),
        ("alps", {"steps": 1.5}, "steps of alps must be a whole number of at least 1; got 1.5"),
        ("alps", {"rho": 0}, "rho of alps must be above 0"),
        ("alps", {"rho": float("nan")}, "rho of alps must be a number"),
    ],
)
def test_a_wrong_word_is_answered_with_the_right_ones(name, settings, message):
    with pytest.raises(ValueError, match=message):
        pruners.make(name, **settings)
