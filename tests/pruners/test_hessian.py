"""The Hessian and its factor against NumPy."""

import numpy as np
import pytest

from nxm_hf.pruners.hessian import Hessian
from tests.support.one_shot import statistics, tokens


@pytest.mark.parametrize("centred", [True, False])
def test_the_factor_of_the_hessian_is_that_of_its_inverse(centred):
    hessian = Hessian.from_inputs(statistics(tokens()), 0.01, centred)
    inverse = np.linalg.inv(hessian.matrix.numpy())
    assert hessian.inverse.numpy() == pytest.approx(inverse, rel=1e-8)
    assert (1 / hessian.obs_cost).numpy() == pytest.approx(np.diag(inverse), rel=1e-8)
    assert hessian.factor.numpy() == pytest.approx(np.linalg.cholesky(inverse).T, rel=1e-7, abs=1e-10)
