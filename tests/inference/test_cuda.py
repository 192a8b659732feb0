"""The backends for GPUs: what they refuse, and how `to_inference` builds and tunes them."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from nxm_hf.inference import cuda, to_inference
from nxm_hf.inference.backends import BACKENDS
from nxm_hf.inference.candidates import Candidate, find_candidates
from nxm_hf.inference.semi_structured import CUSPARSELT, CUTLASS, SemiStructuredLinear
from tests.support.models import make_bert
from tests.support.semi_structured import make_layer, pretended_gpu

LIBRARIES = pytest.mark.parametrize("library", [CUTLASS, CUSPARSELT], ids=lambda library: library.kernel.name)
GPU = cuda.GPU("A GPU", (9, 0), True)
NAMES = ("cutlass", "cusparselt")


@pytest.fixture
def gpu(tmp_path):
    with pretended_gpu(tmp_path) as patch:
        yield patch


def candidate(shape=(96, 128), dtype=torch.bfloat16, pattern=(2, 4)) -> Candidate:
    return Candidate("layer", nn.Identity(), pattern, shape, dtype, torch.device("cuda"))


def off_by_a_tenth(product):
    """Return a product that is wrong."""
    return lambda *words, **named: product(*words, **named) * 1.1


@LIBRARIES
@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (1, 8), (2, 8)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_layers_that_hold_two_of_four_in_half_precision_are_taken(dtype, pattern, library):
    assert cuda.refusal(library, candidate(dtype=dtype, pattern=pattern), GPU) is None
    assert cuda.refusal(library, candidate(), replace(GPU, capability=(8, 0))) is None


@LIBRARIES
@pytest.mark.parametrize("pattern", [(3, 4), (3, 8), (4, 8), (7, 8)])
def test_other_patterns_are_refused(pattern, library):
    reason = cuda.refusal(library, candidate(pattern=pattern), GPU)
    assert reason == f"it holds {pattern[0]}:{pattern[1]}, and {library.kernel.name} computes 2:4 alone"


@LIBRARIES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_precision_is_refused_with_what_to_write(dtype, library):
    reason = cuda.refusal(library, candidate(dtype=dtype), GPU)
    assert str(dtype).removeprefix("torch.") in reason and reason.endswith("load the model with dtype=torch.bfloat16")


@LIBRARIES
@pytest.mark.parametrize("shape", [(96, 128), (48, 48), (30, 64), (16, 16), (32, 40), (64, 32)])
def test_shapes_are_those_that_inspect_shows(shape, library):
    reason = cuda.refusal(library, candidate(shape), GPU)
    assert (reason is None) == library.kernel.takes(shape)
    assert reason is None or reason.endswith(f"it is {shape[0]}x{shape[1]}")


@LIBRARIES
def test_an_old_gpu_is_refused_by_its_capability(library):
    old = cuda.GPU("Tesla T4", (7, 5), True)
    assert cuda.refusal(library, candidate(), old) == "Tesla T4 has compute capability 7.5, and 2:4 needs 8.0"


def test_without_cusparselt_only_cutlass_is_left():
    without = replace(GPU, has_cusparselt=False)
    assert cuda.refusal(CUTLASS, candidate(), without) is None
    assert cuda.refusal(CUSPARSELT, candidate(), without) == "this torch comes without cuSPARSELt"


@LIBRARIES
def test_a_library_that_is_wrong_here_is_not_used(library, gpu, monkeypatch, caplog):
    layer = find_candidates(nn.Sequential(make_layer(96, 128)))[0]
    assert cuda.obstacle(library, layer) is None
    cuda.works.cache_clear()
    for name in ("_cslt_sparse_mm", "_sparse_semi_structured_addmm"):
        monkeypatch.setattr(torch, name, off_by_a_tenth(getattr(torch, name)))
    assert cuda.obstacle(library, layer) == f"{library.kernel.name} failed its self-test here"
    assert f"product of {library.kernel.name}" in caplog.text
    cuda.works.cache_clear()


@LIBRARIES
def test_a_library_that_raises_here_is_not_used(library, gpu, monkeypatch, caplog):
    def fail(*words, **named):
        raise RuntimeError("not supported on your machine")

    for name in ("_cslt_compress", "_sparse_semi_structured_mm"):
        monkeypatch.setattr(torch, name, fail)
    assert not cuda.works(library, torch.device("cpu"), torch.bfloat16)
    assert "not supported on your machine" in caplog.text


@pytest.mark.parametrize("name", NAMES)
def test_a_model_computes_by_the_library_that_is_named(name, gpu):
    model = nn.Sequential(make_layer(96, 128), nn.GELU(), make_layer(64, 96, pattern="1:4"), make_layer(64, 64).float())
    x = torch.randn(3, 7, 128, dtype=torch.bfloat16)
    expected = model[:3](x)
    size = model[0].weight.nbytes
    report = to_inference(model, name, only_if_faster=False, batch=[1, 3], length=7)
    # A width of 96 is no multiple of 64, which CUTLASS needs.
    taken = [name, "dense" if name == "cutlass" else name, "dense"]
    assert [layer.backend for layer in report.layers] == taken
    assert "float32: load the model with dtype=torch.bfloat16" in report.layers[2].reason
    assert torch.allclose(model[:3](x).float(), expected.float(), atol=2e-2)
    assert isinstance(model[0], SemiStructuredLinear) and not model[0].training
    assert report.bytes_before - report.bytes_after >= size * 7 / 16


def test_algorithms_are_searched_for_once_for_each_number_of_tokens(gpu, tmp_path):
    search, searched = torch._cslt_sparse_mm_search, []

    def count(packed, dense, **words):
        searched.append((dense.shape[1], words["bias"] is not None))
        return search(packed, dense, **words)

    gpu.setattr(torch, "_cslt_sparse_mm_search", count)
    for _ in range(2):  # the second model finds what the first one has searched for
        model = nn.Sequential(*(make_layer(32, 32) for _ in range(3)))
        to_inference(model, "cusparselt", only_if_faster=False, batch=[1, 8, 9], length=16)
        assert [layer.algorithms for layer in model] == [((16, 5), (128, 8), (256, 9))] * 3
    assert searched == [(16, True), (128, True), (256, True)]
    (file,) = (tmp_path / "nxm_hf").iterdir()
    content = json.loads(file.read_text())
    assert content["gpu"] == "A GPU" and content["cusparselt"] == 702
    assert content["algorithms"]["bfloat16 32x32 with bias, 128 tokens"] == 8


def test_a_cached_algorithm_is_used_by_a_new_process(gpu, tmp_path):
    to_inference(nn.Sequential(make_layer(32, 32)), "cusparselt", only_if_faster=False, length=16)
    (file,) = (tmp_path / "nxm_hf").iterdir()
    file.write_text(file.read_text().replace('16 tokens": 5', '16 tokens": 4'))
    cuda._known.cache_clear()
    model = nn.Sequential(make_layer(32, 32))
    to_inference(model, "cusparselt", only_if_faster=False, length=16)
    assert model[0].algorithms == ((16, 4),)


@pytest.mark.slow
def test_a_bert_gives_the_same_logits_and_is_compiled(gpu):
    model = make_bert(hidden_size=64, intermediate_size=128, num_hidden_layers=1).to(torch.bfloat16).eval()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.out_features > 2:
            module.weight.data = make_layer(*module.weight.shape).weight
    inputs = {"input_ids": torch.arange(2 * 9).view(2, 9) % 50, "attention_mask": torch.ones(2, 9, dtype=torch.long)}
    with torch.no_grad():
        expected = model(**inputs).logits
        report = to_inference(model, "cutlass", only_if_faster=False, length=9)
        assert len(report.converted) == 7
        assert torch.allclose(model(**inputs).logits.float(), expected.float(), atol=3e-2)
        compiled = torch.compile(model, backend="aot_eager")
        assert torch.allclose(compiled(**inputs).logits.float(), expected.float(), atol=3e-2)
    torch._dynamo.reset()


def test_on_a_machine_without_a_gpu_they_are_refused():
    assert {BACKENDS[name].device_type for name in NAMES} == {"cuda"}
    for name in NAMES:
        report = to_inference(nn.Sequential(make_layer(96, 128)), name, only_if_faster=False)
        assert not report.converted and report.layers[0].reason == "no backend computes on cpu"
