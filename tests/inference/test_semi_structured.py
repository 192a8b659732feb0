"""Layers that GPU libraries compute, with slow products on the CPU in the place of theirs."""

import copy

import pytest
import torch
from torch.nn import functional as F

from benchmarks.cpu_products import cpu_products
from nxm_hf.inference.semi_structured import CUSPARSELT, CUTLASS, SemiStructuredLinear
from tests.support.semi_structured import make_weight

LIBRARIES = pytest.mark.parametrize("library", [CUTLASS, CUSPARSELT], ids=lambda library: library.kernel.name)
INPUTS = {
    "one token": lambda: torch.randn(1, 128),
    "a vector": lambda: torch.randn(128),
    "a whole step": lambda: torch.randn(16, 128),
    "a batch": lambda: torch.randn(3, 5, 128),
    "transposed": lambda: torch.randn(5, 128, 3).transpose(1, 2),
    "every other token": lambda: torch.randn(9, 4, 128)[:, ::2],
    "expanded": lambda: torch.randn(1, 128).expand(3, 4, 128),
    "no token": lambda: torch.randn(0, 7, 128),
}


@pytest.fixture(autouse=True)
def products():
    with cpu_products():
        yield


def close(ours: torch.Tensor, dense: torch.Tensor) -> bool:
    """Return whether two products are equal up to the rounding of their type."""
    return torch.allclose(ours.float(), dense.float(), rtol=2 * torch.finfo(dense.dtype).eps, atol=1e-2)


@LIBRARIES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("inputs", INPUTS)
def test_a_layer_computes_what_the_dense_one_does(inputs, dtype, library):
    x = INPUTS[inputs]().to(dtype)
    for pattern in ("2:4", "1:4", "2:8"):
        weight = make_weight(96, 128, dtype, pattern)
        for bias in (None, torch.randn(96)):
            layer = SemiStructuredLinear(weight, bias, library)
            dense = F.linear(x, weight, None if bias is None else bias.to(dtype))
            ours = layer(x)
            assert ours.shape == dense.shape and ours.dtype == dtype and ours.is_contiguous()
            assert close(ours, dense)


@LIBRARIES
def test_a_layer_holds_nine_sixteenths_of_the_bytes(library):
    weight = make_weight(96, 128)
    layer = SemiStructuredLinear(weight, None, library)
    assert sum(buffer.nbytes for buffer in layer.buffers()) * 16 == weight.nbytes * 9
    assert layer.weight.dtype == torch.bfloat16 and layer.weight.device == weight.device


@LIBRARIES
def test_a_transposed_weight_and_negative_zeros_make_the_same_layer(library):
    weight = make_weight(96, 128)
    signed = torch.where(weight == 0, -0.0, weight)
    layers = [SemiStructuredLinear(each, None, library) for each in (weight, weight.t().contiguous().t(), signed)]
    for layer in layers[1:]:
        assert all(torch.equal(one, other) for one, other in zip(layers[0].buffers(), layer.buffers(), strict=True))


@LIBRARIES
def test_a_compiled_layer_is_one_graph_for_any_number_of_tokens(library):
    weight, bias = make_weight(96, 128), torch.randn(96)
    layer = SemiStructuredLinear(weight, bias, library)
    layer.use_algorithms([(8, 1), (64, 2)])
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch.no_grad():
        for tokens in (2, 3, 8, 21, 200):
            x = torch.randn(2, tokens, 128, dtype=torch.bfloat16)
            assert torch.equal(compiled(x), layer(x))
    torch._dynamo.reset()


@LIBRARIES
def test_autocast_to_another_type_gives_that_type(library):
    weight, x = make_weight(96, 128, torch.float16), torch.randn(5, 128)
    layer = SemiStructuredLinear(weight, None, library)
    with torch.autocast("cpu", torch.bfloat16):
        ours, dense = layer(x), F.linear(x, weight)
    assert ours.dtype == dense.dtype == torch.bfloat16
    assert torch.allclose(ours.float(), dense.float(), atol=0.1)


@LIBRARIES
def test_a_change_of_type_is_refused_and_changes_nothing(library):
    layer, x = SemiStructuredLinear(make_weight(96, 128), None, library), torch.randn(3, 128, dtype=torch.bfloat16)
    before = layer(x)
    for change in (lambda: layer.half(), lambda: layer.to(torch.float32), lambda: layer.to("meta")):
        with pytest.raises(RuntimeError, match=r"stays torch.bfloat16 on cpu.*Load the model again"):
            change()
    assert torch.equal(layer.to("cpu", torch.bfloat16).eval()(x), before)


@LIBRARIES
def test_a_copy_of_a_layer_computes_the_same(library):
    layer, x = SemiStructuredLinear(make_weight(96, 128), None, library), torch.randn(3, 128, dtype=torch.bfloat16)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_inputs_that_do_not_fit_are_refused_with_their_shape():
    layer = SemiStructuredLinear(make_weight(96, 128), None, CUTLASS)
    with pytest.raises(RuntimeError, match=r"\(3, 96\) do not fit a layer of 128"):
        layer(torch.randn(3, 96, dtype=torch.bfloat16))


def test_the_algorithm_is_that_of_the_next_number_of_tokens():
    layer = SemiStructuredLinear(make_weight(96, 128), None, CUSPARSELT)
    assert layer.algorithm(7) == 0
    layer.use_algorithms([(128, 5), (8, 3)])
    assert [layer.algorithm(tokens) for tokens in (1, 8, 9, 128, 4096)] == [3, 3, 5, 5, 5]


def test_the_algorithm_is_given_to_the_product(monkeypatch):
    layer = SemiStructuredLinear(make_weight(96, 128), None, CUSPARSELT)
    layer.use_algorithms([(8, 3), (128, 5)])
    product, used = torch._cslt_sparse_mm, []
    monkeypatch.setattr(torch, "_cslt_sparse_mm", lambda *a, **k: used.append(k["alg_id"]) or product(*a, **k))
    for tokens in (8, 100):
        layer(torch.randn(tokens, 128, dtype=torch.bfloat16))
    assert used == [3, 5]


def test_a_printed_layer_names_its_library():
    text = str(SemiStructuredLinear(make_weight(96, 128), None, CUSPARSELT))
    assert "in_features=128, out_features=96, bias=False" in text and "cuSPARSELt" in text
