"""Wanda against its worked example and against NumPy."""

import numpy as np
import torch

from nxm_hf.patterns import parse
from nxm_hf.pruners import Inputs, Magnitude, Wanda
from tests.support.one_shot import IN, OUT, layer, statistics, tokens


def test_wanda_keeps_the_largest_sum_of_squared_scores_in_tiles_and_blocks():
    x, (weight, _) = tokens() * torch.linspace(0.1, 3, IN), layer(torch.float64)
    lost = weight.square() * statistics(x).norms.square()
    for text in ("2:4-transposable", "4:8-transposable", "block:4:0.5", "block:4x4:0.5"):
        pattern = parse(text)
        mask = Wanda()(weight, None, statistics(x), pattern).mask
        least = float((lost * ~mask).sum())
        assert least <= float((lost * ~pattern.mask(lost.sqrt())).sum()) * (1 + 1e-6)
        for seed in range(10):
            other = pattern.mask(torch.rand(OUT, IN, generator=torch.Generator().manual_seed(seed)))
            assert least <= float((lost * ~other).sum())


def test_wanda_gives_the_worked_example():
    weight = torch.tensor([[0.5, -0.4, 0.3, 0.2], [0.1, 0.6, -0.2, 0.5]])
    inputs = Inputs(torch.diag(torch.tensor([1, 2, 0.5, 4.0]).square()), torch.zeros(4), 10)
    assert Wanda()(weight, None, inputs, parse("2:4")).mask.int().tolist() == [[0, 1, 0, 1], [0, 1, 0, 1]]
    assert Magnitude()(weight, None, None, parse("2:4")).mask.int().tolist() == [[1, 1, 0, 0], [0, 1, 0, 1]]


def test_wanda_keeps_the_largest_shares_of_the_output():
    x, (weight, _) = tokens() * torch.linspace(0.1, 3, IN), layer()
    found = Wanda()(weight, None, statistics(x), parse("3:5"))
    shares = np.abs(weight.double().numpy()) * np.linalg.norm(x.numpy(), axis=0)
    kept = np.argsort(-shares.reshape(OUT, -1, 5), axis=-1)[..., :3]
    mask = np.zeros((OUT, IN // 5, 5), bool)
    np.put_along_axis(mask, kept, True, axis=-1)
    assert found.mask.numpy().tolist() == mask.reshape(OUT, IN).tolist()
    assert torch.equal(found.weight[found.mask], weight[found.mask])
