"""Inspection: what a saved model holds, by layer, and which kernels could run it."""

import pytest
import torch

from nxm_hf import prune
from nxm_hf.layers.gpu_kernels import GPU_KERNELS
from nxm_hf.pruning.directory import prune_directory
from nxm_hf.storage.inspect import inspect
from nxm_hf.storage.verify import verify
from tests.support.models import make_bert
from tests.support.saving import train_two_steps


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of one sparse model in three precisions; some of its shapes fit no kernel or only some."""
    folder = tmp_path_factory.mktemp("saved")
    trainer = train_two_steps(folder / "run", make_bert(hidden_size=48, num_attention_heads=2, intermediate_size=80))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        trainer.model.to(dtype).save_pretrained(folder / str(dtype))
    return folder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_rule_of_shapes_is_the_same_in_every_precision(dtype, saved):
    """Pitfall 13: other tools do not apply their rules about shapes to bf16."""
    full, half = (inspect(saved / str(name)) for name in (torch.float32, dtype))
    assert {layer.dtype for layer in half.layers} == {str(dtype).removeprefix("torch.")}
    assert {layer.dtype for layer in full.layers} == {"float32"}
    assert len(half.layers) == len(full.layers) == 12
    for one, other in zip(full.layers, half.layers, strict=True):
        assert (one.name, one.role, one.shape, one.pattern, one.density) == (
            other.name, other.role, other.shape, other.pattern, other.density
        )  # fmt: skip
        assert [one.refusal(kernel) for kernel in GPU_KERNELS] == [other.refusal(kernel) for kernel in GPU_KERNELS]
        assert one.row()[-1] == other.row()[-1]


def test_a_model_is_sparse_if_any_of_its_layers_is(tmp_path):
    for pattern, sparse in ((None, 0), ({"ffn": "2:4"}, 4), ("2:4", 12)):
        model = make_bert()
        if pattern is not None:
            prune(model, pattern)
        model.save_pretrained(tmp_path / str(sparse))
        found = inspect(tmp_path / str(sparse))
        assert sum(layer.pattern == "2:4" for layer in found.layers) == sparse
        assert found.is_sparse == bool(sparse) and ("once they hold 2:4" in str(found)) != bool(sparse)


def test_a_kernel_takes_multiples_of_its_sides_alone(saved):
    """By hand: 48x48, 80x48 and 48x80 are multiples of 16x16, and of nothing else that a kernel asks for."""
    for name in (torch.float32, torch.bfloat16, torch.float16):
        layers = inspect(saved / str(name)).layers
        assert {layer.shape for layer in layers} == {(48, 48), (80, 48), (48, 80)}
        for layer in layers:
            assert layer.pattern == "2:4" and layer.density == 0.5
            refusals = {str(kernel): layer.refusal(kernel) for kernel in GPU_KERNELS}
            taking = [kernel for kernel, refusal in refusals.items() if refusal is None]
            assert taking == ["cuSPARSELt float16 or bfloat16, multiples of 16x16"]
            size = f"{layer.shape[0]}x{layer.shape[1]}"
            assert {refusal for refusal in refusals.values() if refusal} == {f"{size}, which is no multiple"}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_matrices_without_an_entry_are_counted_as_empty(tmp_path):
    prune(model := make_bert(intermediate_size=0), "2:4")
    model.save_pretrained(tmp_path / "model")
    prune_directory(tmp_path / "model", tmp_path / "again", "2:4")
    for folder in (tmp_path / "model", tmp_path / "again"):
        assert "0x32" in str(inspect(folder)) and "0x32" in str(verify(folder)) and verify(folder).ok
