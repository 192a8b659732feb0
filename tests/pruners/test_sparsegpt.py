"""SparseGPT against its worked example and against OBS with an inverse for each column."""

import numpy as np
import pytest
import torch

from nxm_hf.patterns import parse
from nxm_hf.pruners import SparseGPT
from nxm_hf.pruners.hessian import Hessian
from tests.support.one_shot import IN, ROW, SMALL, absolute, error_of_outputs, generator, layer, statistics, tokens


def test_sparsegpt_gives_the_worked_example():
    found = SparseGPT(damping=0.01)(ROW, None, SMALL, parse("2:4"))
    assert found.weight.tolist()[0] == pytest.approx([0.9, 0, 0, 0.787388], abs=1e-6)
    assert absolute(found) == pytest.approx(0.288720, abs=1e-6)


@pytest.mark.parametrize("n, m", [(2, 4), (3, 5)])
def test_sparsegpt_is_the_surgeon_who_inverts_the_rest_of_the_matrix_at_every_column(n, m):
    """As wide as it takes for several of its blocks of columns."""
    x, width = tokens(400, 140), 140
    weight = torch.randn(3, width, generator=generator(3), dtype=torch.float64)
    found = SparseGPT(damping=0.02)(weight, None, statistics(x), parse(f"{n}:{m}"))
    gram = (x.T @ x).numpy()
    gram += 0.02 * np.diag(gram).mean() * np.eye(width)
    inverses = [np.linalg.inv(gram[column:, column:]) for column in range(width)]
    freed = np.array([inverse[0, 0] for inverse in inverses])
    for number, row in enumerate(weight.numpy().copy()):
        for column, inverse in enumerate(inverses):
            if column % m == 0:
                group = slice(column, column + m)
                pruned = column + np.argsort(row[group] ** 2 / freed[group], kind="stable")[: m - n]
            if column in pruned:
                row[column:] -= row[column] / inverse[0, 0] * inverse[0]
                row[column] = 0
        assert found.weight[number].numpy() == pytest.approx(row, rel=1e-6, abs=1e-8)


def test_a_constant_input_goes_first_where_the_bias_takes_it_over():
    x, (weight, bias) = tokens(), layer(torch.float64)
    constant = torch.arange(IN) % 4 == 3
    weight, x = torch.where(constant, 30, weight), torch.where(constant, 2.0, x)
    found = SparseGPT(bias="joint")(weight, bias, statistics(x), parse("3:4"))
    assert not found.mask[:, constant].any() and error_of_outputs(weight, bias, found, x) < 1e-20
    assert SparseGPT()(weight, bias, statistics(x), parse("3:4")).mask[:, constant].any()


@pytest.mark.parametrize("text", ["block:4:0.5", "block:4x4:0.5", "unstructured:0.5"])
def test_without_groups_the_mask_is_that_of_the_least_sum_of_costs(text):
    x, (weight, _), pattern = tokens(), layer(torch.float64), parse(text)
    mask = SparseGPT(damping=0.01)(weight, None, statistics(x), pattern).mask
    costs = weight.square() * Hessian.from_inputs(statistics(x), 0.01, centred=False).obs_cost
    least = float((costs * ~mask).sum())
    for seed in range(20):
        other = pattern.mask(torch.rand(weight.shape, generator=generator(seed)))
        assert least <= float((costs * ~other).sum())
    assert least <= float((costs * ~pattern.mask(costs)).sum())
