"""Experts in one parameter: which they are, and how their matrices lie."""

import logging

import pytest
import torch

from nxm_hf import NxMConfig, attach, prune, verify
from nxm_hf.layers.experts import as_matrix, expert_stacks, shape_of_one
from nxm_hf.layers.find import find_layers, left_dense
from nxm_hf.layers.plan import Plan
from nxm_hf.layers.sharding import tiles_are_whole
from nxm_hf.permutation.coupled_layers import find_coupled_layers
from nxm_hf.storage.model_record import is_frozen, read_record
from nxm_hf.storage.packed_directory import save_packed
from tests.support.group_of_one import group_of_one
from tests.support.model_types import MIXTURES
from tests.support.versions import not_in_4

pytestmark = not_in_4("has no stacks of experts whose form is known")

STACKED = [
    kind for kind in MIXTURES if kind.name in ("mixtral", "gpt_oss")
]  # [experts, out, in] and [experts, in, out]


def experts_of(model):
    return [layer for layer in find_layers(model) if layer.holds_experts]


@pytest.fixture(params=STACKED, ids=str)
def model(request):
    return request.param.model(0)


def test_the_experts_of_a_block_are_two_layers_with_roles_and_names_of_their_own(model):
    first, second = experts_of(model)
    assert (first.name, first.role) == ("model.layers.0.mlp.experts.gate_up_proj", "ffn_in")
    assert (second.name, second.role) == ("model.layers.0.mlp.experts.down_proj", "ffn_out")
    assert first.scope == second.scope == first.module_name == "model.layers.0.mlp.experts"
    assert first.key == first.name and first.key in model.state_dict() and first.bias is None
    assert first.shape_of_one == (128, 32) and second.shape_of_one == (32, 64)
    assert not left_dense(model).keys() & {first.name, second.name}
    assert [layer.name for layer in find_layers(model, include="experts")] == [first.name, second.name]
    assert not {first.name, second.name} & {layer.name for layer in find_layers(model, exclude="experts")}


@torch.no_grad()
def test_the_last_dimension_of_each_experts_matrix_is_its_input(model):
    """With a column of zeros for one input in every expert, the outputs do not depend on that input."""
    layer, channel = experts_of(model)[0], 5
    experts, (_, width) = layer.module, layer.shape_of_one
    layer.matrix(layer.weight)[:, channel::width] = 0  # of experts one below the other, every column is of one input
    tokens = torch.randn(6, width, generator=torch.Generator().manual_seed(0))
    routes = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0], [0, 2], [1, 3]])
    outputs = experts(tokens, routes, torch.full((6, 2), 0.5))
    for changed, same in ((channel, True), (channel + 1, False)):
        others = tokens.clone()
        others[:, changed] += 1
        assert torch.equal(experts(others, routes, torch.full((6, 2), 0.5)), outputs) == same


def test_the_matrix_of_experts_is_a_view_of_all_their_entries(model):
    for layer in experts_of(model):
        matrix = layer.matrix(layer.weight.detach())
        assert matrix.numel() == layer.weight.numel() and matrix.data_ptr() == layer.weight.data_ptr()
        assert layer.shape == tuple(matrix.shape)
        one = layer.weight[1].t() if layer.module.is_transposed else layer.weight[1]
        rows, columns = layer.shape_of_one
        assert tuple(one.shape) == (rows, columns) == shape_of_one(layer.module, layer.weight)
        here = matrix[:, columns : 2 * columns] if layer.module.is_transposed else matrix[rows : 2 * rows]
        assert torch.equal(here, one) and torch.equal(as_matrix(layer.module, layer.weight), matrix)


@pytest.mark.parametrize("pattern", ["2:4", "2:4-transposable", "unstructured:0.5", "block:4x4:0.5"])
def test_each_expert_holds_the_pattern_along_its_inputs(model, pattern):
    prune(model, pattern)
    assert verify(model).ok
    if pattern.startswith("2:4"):
        for layer in experts_of(model):
            for weight in layer.weight.detach():
                along = weight if not layer.module.is_transposed else weight.t()
                assert int((along.unflatten(-1, (-1, 4)) != 0).sum(-1).max()) == 2


def test_a_pattern_must_fit_one_expert_and_not_all_of_them_together():
    """4 experts of width 34 would make 136 columns, which 2:8 divides, and groups across two experts."""
    kind = next(kind for kind in STACKED if kind.name == "gpt_oss")
    model = type(kind)(kind.name, kind.cls, {**kind.config, "intermediate_size": 34}, kind.row).model(0)
    with pytest.raises(ValueError, match=r"does not fit 1 layers \(model\.layers\.0\.mlp\.experts\.down_proj\)"):
        Plan.of(model, NxMConfig("asp", "2:8"))
    assert len(Plan.of(model, NxMConfig("asp", "2:8", on_indivisible="skip")).skipped) == 1


@pytest.mark.parametrize("recipe", ["admm", "sr-ste", "rigl"])
def test_experts_train_with_the_other_layers(model, recipe):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    engine = attach(model, optimizer, NxMConfig(recipe), total_steps=3)
    before = {layer.name: layer.weight.detach().clone() for layer in experts_of(model)}
    ids = torch.randint(3, 99, (4, 8), generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    engine.finish()
    assert verify(model).ok and verify(model).density == 0.5
    for layer in experts_of(model):
        kept = layer.weight != 0
        assert not torch.equal(layer.weight[kept], before[layer.name][kept])


def test_a_method_with_inputs_prunes_experts_by_magnitude_and_says_so_once(model, caplog):
    batches = [{"input_ids": torch.randint(3, 99, (4, 16), generator=torch.Generator().manual_seed(0))}]
    other = {layer.name: layer.weight.detach().clone() for layer in experts_of(model)}
    with caplog.at_level(logging.WARNING, "nxm_hf"):
        result = prune(model, "2:4", "sparsegpt", calibration=batches)
    said = [record.message for record in caplog.records if "experts" in record.message]
    assert len(said) == 1 and "sparsegpt needs the inputs of each matrix" in said[0] and "2 of these" in said[0]
    notes = {layer.name: layer.note for layer in result.layers}
    for layer in experts_of(model):
        assert "each with inputs of its own; pruned by magnitude" in notes[layer.name]
        kept = layer.weight != 0
        assert torch.equal(layer.weight[kept], other[layer.name][kept])
    assert not any("experts" in note for name, note in notes.items() if "experts" not in name)


def test_other_tools_leave_experts_alone_and_say_why(model, tmp_path):
    prune(model, "2:4")
    experts = [layer.name for layer in experts_of(model)]
    packed = save_packed(model, tmp_path / "packed")
    assert packed.left_plain == dict.fromkeys(experts, "it holds the matrices of several experts")
    assert verify(tmp_path / "packed").ok and len(verify(tmp_path / "packed").layers) == 6
    _, skipped = find_coupled_layers(model)
    assert experts[1] in skipped


def test_frozen_experts_are_part_of_a_frozen_model(model):
    prune(model, "2:4", include="experts")
    assert read_record(model).layers.keys() == {layer.name for layer in experts_of(model)}
    assert not is_frozen(model)
    model.requires_grad_(False)
    assert is_frozen(model)
    experts_of(model)[1].weight.requires_grad_(True)
    assert not is_frozen(model)


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_each_process_gets_whole_experts_of_a_sharded_stack(processes, model):
    """Of 4 experts, three processes get 2, 2 and none, and five get one each, or none."""
    for layer in experts_of(model):
        rows, columns = layer.shape_of_one
        assert tiles_are_whole(layer, rows, columns, processes)
        assert tiles_are_whole(layer, 2 * rows, 2 * columns, processes) == (processes < 5)
        assert not tiles_are_whole(layer, 3 * rows, 3 * columns, processes)


def test_what_one_process_holds_of_a_stack_is_the_matrix_of_all_experts(model):
    with group_of_one() as shards:
        for layer in experts_of(model):
            matrix = layer.matrix(layer.weight.detach())
            assert layer.shape == matrix.shape
            for whole in (matrix, matrix > 0):
                part = shards.part(layer, whole)
                assert torch.equal(part, whole) and torch.equal(shards.whole(layer, part), whole)


def test_of_a_module_of_experts_only_stacks_of_matrices_with_known_names_are_layers():
    module = torch.nn.Module()
    module.is_transposed = False
    shapes = {"up_proj": (4, 8, 8), "gate_proj": (8, 8), "down_proj": (4, 8), "other_proj": (4, 8, 8)}
    for name, shape in shapes.items():
        module.register_parameter(name, torch.nn.Parameter(torch.zeros(shape)))
    assert list(expert_stacks(module)) == ["up_proj"]


def test_modules_that_do_not_say_how_their_matrices_lie_have_no_stacks(model):
    experts = experts_of(model)[0].module
    assert list(expert_stacks(experts)) == ["gate_up_proj", "down_proj"]
    del experts.is_transposed
    assert not list(expert_stacks(experts)) and not list(expert_stacks(torch.nn.Linear(2, 2)))
