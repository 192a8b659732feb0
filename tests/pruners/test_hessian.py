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
    assert hessian.inverse(torch.float64).numpy() == pytest.approx(inverse, rel=1e-8)
    assert (1 / hessian.obs_cost).numpy() == pytest.approx(np.diag(inverse), rel=1e-8)
    assert hessian.factor.numpy() == pytest.approx(np.linalg.cholesky(inverse).T, rel=1e-7, abs=1e-10)


@pytest.mark.parametrize("width", [256, 257, 600])
def test_the_inverse_of_a_wide_hessian_is_that_of_numpy(width):
    hessian = Hessian.from_inputs(statistics(tokens(2 * width, width)), 0.01, centred=False)
    inverse = hessian.inverse(torch.float64)
    assert inverse.numpy() == pytest.approx(np.linalg.inv(hessian.matrix.numpy()), rel=1e-6, abs=1e-9)
    assert torch.equal(inverse, inverse.T)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_inverse_and_eigenvectors_are_computed_once_in_each_type(dtype, close):
    hessian = Hessian.from_inputs(statistics(tokens()), 0.01, centred=False)
    values, vectors, scale = hessian.scaled_eigen(dtype)
    matrix = (vectors * values) @ vectors.T * torch.outer(scale, scale)
    assert torch.allclose(matrix, hessian.matrix.to(dtype), rtol=0, atol=close)
    product = hessian.inverse(dtype) @ hessian.matrix.to(dtype)
    assert torch.allclose(product, torch.eye(len(product), dtype=dtype), rtol=0, atol=100 * close)
    assert hessian.inverse(dtype) is hessian.inverse(dtype) and hessian.scaled_eigen(dtype)[1] is vectors
