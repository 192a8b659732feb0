"""Inspection: what a saved model holds, by layer, and which kernels could run it."""

import json
from dataclasses import replace

import pytest
import torch

from nxm_hf import prune
from nxm_hf.layers.find import find_layers, left_dense
from nxm_hf.layers.gpu_kernels import GPU_KERNELS
from nxm_hf.pruning.directory import prune_directory
from nxm_hf.solvers import SOLVERS, cpu, gpu
from nxm_hf.solvers.backend import Backend
from nxm_hf.storage.inspect import InspectedLayer, Inspection, inspect
from nxm_hf.storage.replacing import COMPLETE
from nxm_hf.storage.verify import verify
from tests.support.models import make_bert, make_model
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


SQUARE = InspectedLayer("a.query", "query", (64, 128), "float32", "2:4", 0.5, None)
ODD = replace(SQUARE, name="b", shape=(6, 8), pattern="dense", density=1.0)
BLOCKED = replace(SQUARE, name="c", pattern="1:2-transposable", obstacle="Conv1D, which would have to become")


def test_groups_of_two_are_no_2_of_4_where_rows_end_in_half_a_group(tmp_path):
    prune(model := make_bert(intermediate_size=30), "1:2")
    model.save_pretrained(tmp_path)
    assert {layer.shape[1]: layer.obstacle for layer in inspect(tmp_path).layers} == {
        32: None,
        30: "1:2, which is not 2:4",
    }


def test_files_of_a_save_that_was_stopped_are_put_in_place_before_they_are_inspected(tmp_path):
    """The model of the save is complete, and its files only have to be moved."""
    make_bert().save_pretrained(tmp_path)
    prune(model := make_bert(), "2:4")
    model.save_pretrained(tmp_path / COMPLETE / "new")
    names = sorted(path.name for path in (tmp_path / COMPLETE / "new").iterdir())
    (tmp_path / COMPLETE / "files.json").write_text(json.dumps({"new": names, "outdated": []}))
    assert inspect(tmp_path).is_sparse and not (tmp_path / COMPLETE).exists()


@pytest.mark.parametrize("on_gpu", [True, False], ids=["triton", "no triton"])
@pytest.mark.parametrize("on_cpu", [True, False], ids=["numba", "no numba"])
def test_an_inspection_names_the_solvers_that_are_in_use_here(on_cpu, on_gpu, monkeypatch):
    def absent():
        raise ImportError("not installed")

    if not on_cpu:
        monkeypatch.setattr(cpu, "BACKEND", Backend("cpu", "numba", absent, groups_at_once=16))
    elif not cpu.BACKEND.works():
        pytest.skip("the kernels for CPUs need numba")
    monkeypatch.setattr(gpu, "BACKEND", Backend("cpu", "Triton", object if on_gpu else absent))
    said = str(Inspection("A title.", (), {})).split("\n\n")[-1]
    assert "\n" not in said and said.startswith("Solvers in use: nm: ")
    for tier, there in ((cpu, on_cpu), (gpu, on_gpu)):
        assert all((solver.__name__ in said) == there for solver in tier.SOLVERS.values())
    assert all(f"{kind}: " in said and solvers[-1].__name__ in said for kind, solvers in SOLVERS.items())
    assert ("pip install 'nxm-hf[fast]'" in said) != on_cpu
    assert said.endswith("On a GPU, kernels of Triton." if on_gpu else "not in use: Triton cannot be imported.")


def test_an_inspection_lists_every_layer_and_counts_why_kernels_refuse_some():
    found = Inspection("A title.", (SQUARE, ODD, BLOCKED, replace(BLOCKED, name="d")), {"head": "it stands outside"})
    assert [SQUARE.refusal(kernel) for kernel in GPU_KERNELS] == [None] * len(GPU_KERNELS)
    assert {ODD.refusal(kernel) for kernel in GPU_KERNELS} == {"6x8, which is no multiple"}
    assert {BLOCKED.refusal(kernel) for kernel in GPU_KERNELS} == {BLOCKED.obstacle}
    assert SQUARE.row() == ("a.query", "query", "64x128", "float32", "2:4", "0.5000", "1 2 3 4"[: 2 * len(GPU_KERNELS)])
    assert ODD.row()[-2:] == ("1.0000", "- - - -"[: 2 * len(GPU_KERNELS)])
    payload = found.to_dict()
    assert payload["layers"][0] == {**vars(SQUARE), "gpu": [str(kernel) for kernel in GPU_KERNELS]}
    assert payload["layers"][1]["gpu"] == [] and payload["title"] == "A title." and json.dumps(payload)
    assert payload["left_dense"] == found.left_dense
    title, layers, rest, gpu, solvers = str(found).split("\n\n")
    assert title == "A title." and len(layers.splitlines()) == 6 and rest == "Never pruned:\n  head: it stands outside"
    assert [line for line in gpu.splitlines() if line.startswith("  1 ")] == [f"  1 {GPU_KERNELS[0]}: 1 of 4 layers"]
    assert gpu.count("      not 6x8, which is no multiple: 1 layers") == len(GPU_KERNELS)
    assert gpu.count(f"      not {BLOCKED.obstacle}: 2 layers") == len(GPU_KERNELS)
    assert solvers.startswith("Solvers in use: nm: ") and "Never pruned" not in str(replace(found, left_dense={}))


@pytest.mark.parametrize(
    ("name", "pattern", "obstacle"),
    [
        ("bert", "1:4", None),
        ("bert", "2:4", None),
        ("bert", "4:8", "4:8, which is not 2:4"),
        ("bert", None, None),
        ("gpt2", "2:4", "Conv1D, which would have to become a Linear first"),
    ],
)
def test_what_is_inspected_is_what_was_saved_and_only_linear_layers_of_2_of_4_have_kernels(
    name, pattern, obstacle, tmp_path
):
    model = make_model(name)
    if pattern:
        prune(model, pattern)
    model.save_pretrained(tmp_path)
    found = inspect(tmp_path)
    assert [layer.name for layer in found.layers] == [layer.name for layer in find_layers(model)]
    assert found.left_dense == left_dense(model) and found.is_sparse == bool(pattern)
    for layer, held in zip(found.layers, find_layers(model), strict=True):
        assert layer.shape == held.shape and layer.role == held.role and layer.pattern == (pattern or "dense")
        assert layer.density == int(held.weight.count_nonzero()) / held.weight.numel()
        assert layer.obstacle == obstacle and layer.dtype == "float32"
    said = "pattern" if pattern else "no record of being sparse."
    assert found.title.startswith(f"{type(model).__name__} in {tmp_path}: ") and said in found.title
