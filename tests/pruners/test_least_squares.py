"""The best weights of the worked example."""

import pytest

from nxm_hf.patterns import parse
from nxm_hf.pruners import ALPS, AdaPrune
from tests.support.one_shot import ROW, SMALL, absolute


@pytest.mark.parametrize("method", [AdaPrune("sparsegpt", damping=0.0, tolerance=1e-14), ALPS(0.0, tolerance=1e-14)])
def test_the_best_weights_of_the_worked_example_are_found(method):
    found = method(ROW, None, SMALL, parse("2:4"))
    assert found.weight.tolist()[0] == pytest.approx([0.789881, 0, 0, 0.792736], abs=1e-6)
    assert absolute(found) == pytest.approx(0.274784, abs=1e-6)
