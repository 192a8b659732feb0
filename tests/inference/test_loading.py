"""from_pretrained with NxMInference gives a model whose layers compute with packed weights."""

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

import nxm_hf
from nxm_hf.inference.sparse_linear import SparseLinear
from tests.support.inference import sparse_bert
from tests.support.saved_models import make_sparse

pytest.importorskip("numba", reason="the kernels for CPUs need numba")
IDS = torch.arange(24).view(2, 12)


@pytest.fixture(params=["dense", "packed"])
def folder(request, tmp_path):
    make_sparse(sparse_bert(), tmp_path / "dense")
    if request.param == "packed":
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "dense")
        nxm_hf.save_packed(model, tmp_path / "packed")
    return tmp_path / request.param


def test_a_dense_and_a_packed_directory_are_loaded_for_inference(folder):
    expected = AutoModelForSequenceClassification.from_pretrained(folder)(input_ids=IDS).logits
    config = nxm_hf.NxMInference(only_if_faster=False, length=8)
    model = AutoModelForSequenceClassification.from_pretrained(folder, quantization_config=config)
    assert sum(isinstance(module, SparseLinear) for module in model.modules()) == 12
    assert len(model.inference_report.converted) == 12 and model.inference_report.tokens == (8,)
    torch.testing.assert_close(model(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_model_without_its_head_is_loaded_too(folder):
    model = AutoModel.from_pretrained(folder, quantization_config=nxm_hf.NxMInference(only_if_faster=False))
    assert sum(isinstance(module, SparseLinear) for module in model.modules()) == 12


def test_it_cannot_be_saved_and_says_what_to_do(folder, tmp_path):
    model = AutoModel.from_pretrained(folder, quantization_config=nxm_hf.NxMInference(only_if_faster=False))
    with pytest.raises(RuntimeError, match=r"loaded with NxMInference cannot be saved.*save_packed\(model, dir\)"):
        model.save_pretrained(tmp_path / "again")
    assert not list((tmp_path / "again").glob("*.safetensors"))


def test_a_dense_directory_is_not_read_as_a_packed_one(tmp_path):
    sparse_bert().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"This directory is not packed\. Pack it: nxm pack DIR OUT"):
        AutoModel.from_pretrained(tmp_path, quantization_config=nxm_hf.NxMPackedConfig())
