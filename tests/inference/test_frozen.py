"""What no layer with a packed weight can do, whoever computes it."""

import pytest
import torch
from torch import nn

from benchmarks.cpu_products import cpu_products
from nxm_hf.inference.frozen import FrozenLinear
from nxm_hf.inference.semi_structured import CUSPARSELT, CUTLASS, SemiStructuredLinear
from nxm_hf.inference.sparse_linear import SparseLinear
from tests.support.semi_structured import make_weight


@pytest.fixture(params=["SparseLinear", "CUTLASS", "cuSPARSELt"])
def layer(request):
    weight, bias = make_weight(32, 64), torch.randn(32)
    with cpu_products():
        if request.param == "SparseLinear":
            yield SparseLinear(weight, bias, (2, 4))
        else:
            yield SemiStructuredLinear(weight, bias, CUTLASS if request.param == "CUTLASS" else CUSPARSELT)


def test_a_gradient_is_refused_and_a_forward_under_no_grad_is_not(layer):
    x = torch.randn(8, 64, dtype=torch.bfloat16, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"no gradients.*no_grad"):
        layer(x)
    with torch.no_grad():
        assert layer(x).shape == (8, 32)
    assert not list(layer.parameters())


def test_saving_names_the_layer_and_what_to_do_instead(layer):
    with pytest.raises(RuntimeError, match=r"^encoder\.0 computes .*model\.save_pretrained\(dir\).*save_packed"):
        nn.ModuleDict({"encoder": nn.Sequential(layer)}).state_dict()


def test_inputs_of_another_type_are_refused_outside_of_autocast(layer):
    with pytest.raises(RuntimeError, match=r"float32 and the weight is torch\.bfloat16"):
        layer(torch.randn(8, 64))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(8, 64)).dtype == torch.bfloat16


def test_a_frozen_layer_prepares_inputs_as_autocast_does():
    x = torch.randn(8, 64)
    assert FrozenLinear().prepared(x, torch.float32) is x
    with torch.autocast("cpu", torch.float16):
        assert FrozenLinear().prepared(x, torch.float32).dtype == torch.float16
