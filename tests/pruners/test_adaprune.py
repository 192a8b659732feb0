"""AdaPrune against least squares in NumPy, and mean absorption by hand."""

import numpy as np
import pytest
import torch

from nxm_hf.patterns import parse
from nxm_hf.pruners import AdaPrune
from nxm_hf.pruners.adaprune import mean_absorption
from tests.support.one_shot import IN, layer, statistics, tokens


def test_absorption_shares_out_what_a_group_loses():
    mask = torch.tensor([[1, 0, 1, 0, 0, 0, 0, 0]]).bool()
    found = mean_absorption(torch.tensor([[0.8, -0.3, 0.5, 0.1, 1, 2, 3, 4]]), mask, 4)
    assert found.tolist()[0] == pytest.approx([0.7, 0, 0.4, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("damping", [0.0, 0.01])
@pytest.mark.parametrize("moves", ["after", "joint", "keep"])
@pytest.mark.parametrize("text", ["2:4", "unstructured:0.3", "block:4x4:0.5"])
def test_adaprune_is_the_least_squares_of_numpy_row_by_row(text, moves, damping):
    x, (weight, bias) = tokens(), layer(torch.float64)
    method = AdaPrune(bias=moves, damping=damping, tolerance=1e-15)
    found = method(weight, bias, statistics(x), parse(text))
    inputs = x.numpy() - (x.numpy().mean(0) if moves == "joint" else 0)
    weights = weight.numpy()
    pull = (damping * (inputs**2).sum(0).mean()) ** 0.5 * np.eye(IN)  # rows that ask each weight to stay as it is
    rows = np.concatenate([inputs, pull])
    for number, mask in enumerate(found.mask.numpy()):
        best = np.linalg.lstsq(rows[:, mask], rows @ weights[number], rcond=None)[0]
        assert found.weight[number].numpy()[mask] == pytest.approx(best, rel=1e-5, abs=1e-6)
    assert (found.bias is None) == (moves == "keep")
    if moves != "keep":
        off = (x @ (weight - found.weight).T + bias - found.bias).mean(0)
        assert off.abs().max() < 1e-10
