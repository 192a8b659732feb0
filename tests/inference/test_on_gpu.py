"""2:4 products that only a GPU can compute; skipped, with the reason, where there is none."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nxm_hf.inference import cuda, to_inference
from nxm_hf.inference.algorithms import AlgorithmCache, Installation
from nxm_hf.inference.candidates import find_candidates
from nxm_hf.inference.semi_structured import CUSPARSELT, CUTLASS, SemiStructuredLinear
from tests.support.models import make_bert
from tests.support.semi_structured import make_layer, make_weight

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < cuda.CAPABILITY,
        reason="needs a CUDA device of compute capability 8.0",
    ),
]
SHAPES = ((768, 768), (3072, 768), (768, 3072), (2048, 8192), (64, 64))


@pytest.fixture(params=[CUTLASS, CUSPARSELT], ids=lambda library: library.kernel.name)
def library(request):
    if request.param is CUSPARSELT and not torch.backends.cusparselt.is_available():
        pytest.skip("this torch comes without cuSPARSELt")
    return request.param


def assert_close(ours: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Assert that a product is within the rounding of its type."""
    doubles = [None if each is None else each.double() for each in (x, weight, bias)]
    exact = F.linear(*doubles)
    size = F.linear(*(None if each is None else each.abs() for each in doubles))
    assert ours.is_contiguous() and ours.shape == exact.shape
    assert bool(((ours - exact).abs() <= torch.finfo(ours.dtype).eps * size).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_products_are_those_of_the_dense_layer(dtype, library):
    assert cuda.works(library, torch.device("cuda"), dtype)
    for rows, columns in SHAPES:
        weight, bias = make_weight(rows, columns, dtype).cuda(), torch.randn(rows, device="cuda").to(dtype)
        for own in (bias, None):
            layer = SemiStructuredLinear(weight, own, library)
            for sizes in ((1,), (3, 5), (128,), (2, 77), (1000,)):
                x = torch.randn(*sizes, columns, device="cuda").to(dtype)
                assert_close(layer(x), x, weight, own)


def test_every_algorithm_that_is_found_computes_the_product(library, tmp_path):
    if library is CUTLASS:
        pytest.skip("CUTLASS has one algorithm")
    known = AlgorithmCache(Installation.of(torch.device("cuda")), tmp_path)
    for rows, columns in SHAPES:
        weight, bias = make_weight(rows, columns).cuda(), torch.randn(rows, device="cuda").bfloat16()
        layer = SemiStructuredLinear(weight, bias, library)
        cuda.search_algorithms(layer, [1, 100, 4096], known)
        assert [most for most, _ in layer.algorithms] == [8, 128, 4096]
        for tokens in (1, 5, 8, 99, 128, 1000, 5000):  # not only those that it was searched for
            x = torch.randn(tokens, columns, device="cuda").bfloat16()
            assert_close(layer(x), x, weight, bias)


@pytest.mark.filterwarnings("ignore")  # of the compiler of torch
def test_a_compiled_layer_computes_the_same(library):
    weight, bias = make_weight(768, 3072).cuda(), torch.randn(768, device="cuda").bfloat16()
    layer = SemiStructuredLinear(weight, bias, library)
    for dynamic in (False, True):
        compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic)
        with torch.no_grad():
            for tokens in (128, 77):
                x = torch.randn(2, tokens, 3072, device="cuda").bfloat16()
                assert_close(compiled(x), x, weight, bias)
        torch._dynamo.reset()


def test_a_model_on_a_gpu_is_converted_where_that_is_asked_for(library, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    model = make_bert(hidden_size=64, intermediate_size=128).to("cuda", torch.bfloat16).eval()
    for candidate in find_candidates(model):
        if candidate.shape[0] > 2:
            candidate.module.weight.data = make_layer(*candidate.shape).weight.cuda()
    ids = torch.arange(2 * 9, device="cuda").view(2, 9) % 50
    with torch.no_grad():
        expected = model(ids).logits
        name = library.kernel.name.lower()
        report = to_inference(model, name, only_if_faster=False, batch=2, length=9)
        assert {layer.backend for layer in report.converted} == {name} and len(report.converted) == 13
        assert torch.allclose(model(ids).logits.float(), expected.float(), atol=5e-2)
    assert report.bytes_after < report.bytes_before
    with pytest.raises(RuntimeError, match="cannot be saved"):
        model.state_dict()


def test_never_slower_is_what_the_report_says(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    model = nn.Sequential(*(make_layer(4096, 4096) for _ in range(4))).cuda()
    report = to_inference(model, batch=[1, 32], length=128)
    for layer in report.layers:
        assert layer.speedups and (layer.backend == "dense" or min(layer.speedups.values()) > 0.9)
