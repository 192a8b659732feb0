"""The Hessian and its factor against NumPy."""

import numpy as np
import pytest
import torch

from nxm_hf.pruners import Inputs
from nxm_hf.pruners.hessian import Hessian
from tests.support.one_shot import statistics, tokens


def test_layers_with_the_same_inputs_share_one_hessian_for_each_damping():
    x = torch.randn(50, 8)
    inputs, others = (Inputs(x.T @ x, x.mean(0), len(x)) for _ in range(2))
    hessian = Hessian.for_bias_mode(inputs, 0.1, None, "after")
    assert Hessian.for_bias_mode(inputs, 0.1, torch.ones(4), "keep") is hessian
    assert Hessian.for_bias_mode(inputs, 0.2, None, "after") is not hessian
    assert Hessian.for_bias_mode(inputs, 0.1, torch.ones(4), "joint") is not hessian
    assert Hessian.for_bias_mode(others, 0.1, None, "after") is not hessian


@pytest.mark.parametrize("centred", [True, False])
def test_the_factor_of_the_hessian_is_that_of_its_inverse(centred):
    hessian = Hessian.from_inputs(statistics(tokens()), 0.01, centred)
    inverse = np.linalg.inv(hessian.matrix.numpy())
    assert hessian.inverse.numpy() == pytest.approx(inverse, rel=1e-8)
    assert (1 / hessian.obs_cost).numpy() == pytest.approx(np.diag(inverse), rel=1e-8)
    assert hessian.factor.numpy() == pytest.approx(np.linalg.cholesky(inverse).T, rel=1e-7, abs=1e-10)
