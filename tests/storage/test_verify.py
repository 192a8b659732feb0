"""Verification: a model and its directory hold what their record promises, and each way to break that is found."""

import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import fully_shard
from transformers import BertForSequenceClassification

from nxm_hf import NxMConfig, NxMTrainer, SparsityRecord, prune, verify
from nxm_hf.layers.plan import Plan
from nxm_hf.layers.sharding import Shards, local
from nxm_hf.packing import PackedLinear
from nxm_hf.patterns import NM, PATTERNS, parse
from nxm_hf.solvers.entry_counts import EntryCounts
from nxm_hf.storage.inspect import inspect
from nxm_hf.storage.manifest import MANIFEST_FILE
from nxm_hf.storage.model_files import load_model
from nxm_hf.storage.replacing import COMPLETE
from nxm_hf.storage.restoring import load_weights
from nxm_hf.storage.verification import Verification
from nxm_hf.storage.verify import UNMERGED, verify_targets, verify_written
from tests.support.containers import make_encoder
from tests.support.group_of_one import group_of_one
from tests.support.models import assert_equal_weights, make_arguments, make_bert, make_rows
from tests.support.packed_models import save_both

NAME = "bert.encoder.layer.1.intermediate.dense"


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    """The directory of a sparse model; tests work on copies of it."""
    folder = tmp_path_factory.mktemp("deployed")
    arguments = make_arguments(folder / "run", max_steps=1, save_strategy="no")
    trainer = NxMTrainer(make_bert(), arguments, train_dataset=make_rows(8), sparsity="asp")
    trainer.train()
    trainer.save_model(folder / "model")
    return folder / "model"


@pytest.fixture
def folder(deployed, tmp_path):
    """A copy to damage, without a manifest, which would report every damage first."""
    return shutil.copytree(deployed, tmp_path / "copy", ignore=shutil.ignore_patterns(MANIFEST_FILE))


@pytest.fixture
def model(deployed):
    return BertForSequenceClassification.from_pretrained(deployed)


def _edit(folder, change):
    """Change one layer's weight in the file."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors[f"{NAME}.weight"])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _edit_record(folder, change):
    words = json.loads((folder / "nxm_config.json").read_text())
    change(words)
    (folder / "nxm_config.json").write_text(json.dumps(words))


def _zero_at(weight):
    """The row and column of the first zero."""
    return tuple((weight == 0).nonzero()[0].tolist())


def _break_pattern(weight):
    weight[_zero_at(weight)] = 1.0


def _negative_zero(weight):
    weight[_zero_at(weight)] = -0.0


def _nan(weight):
    weight[tuple((weight != 0).nonzero()[0].tolist())] = float("nan")


DAMAGE = {
    _break_pattern: f"{NAME} breaks 2:4 in 1 places.",
    _negative_zero: f"{NAME} holds 1 zeros that are -0.0.",
    _nan: f"{NAME} holds 1 entries that are NaN.",
}


def test_a_deployed_model_and_its_directory_are_ok(deployed, model):
    for report in (verify(model), verify(deployed), verify(str(deployed))):
        assert report.ok and report.problems == []
        assert len(report.layers) == 12 and report.density == 0.5
        report.raise_for_problems()


def test_what_is_reported_of_a_layer_is_what_counting_finds(deployed, model):
    """Pitfall 29: exact numbers, of the layers that are pruned and of no others."""
    report = verify(deployed)
    zeros = total = 0
    for layer in report.layers:
        weight = model.get_submodule(layer.name).weight.tolist()
        kept = sum(value != 0 for row in weight for value in row)
        assert layer.shape == (len(weight), len(weight[0])) and layer.nonzeros == kept
        assert layer.density == kept / (len(weight) * len(weight[0]))
        zeros, total = zeros + layer.numel - kept, total + layer.numel
    assert report.density == (total - zeros) / total
    assert not any("classifier" in layer.name or "embed" in layer.name for layer in report.layers)


def test_a_density_below_the_pattern_is_reported_to_the_last_entry(model):
    """Pitfall 29: fewer non-zeros than the pattern allows are counted, and are no problem."""
    weight = model.get_submodule(NAME).weight
    with torch.no_grad():
        weight[weight != 0] = torch.where(torch.arange(int((weight != 0).sum())) < 3, 0.0, weight[weight != 0])
    report = verify(model)
    (layer,) = [layer for layer in report.layers if layer.name == NAME]
    assert report.ok and layer.nonzeros == weight.numel() // 2 - 3
    assert layer.density == layer.nonzeros / weight.numel() < 0.5
    entries = sum(layer.numel for layer in report.layers)
    assert report.density == (entries // 2 - 3) / entries


@pytest.mark.parametrize("change", DAMAGE, ids=lambda change: change.__name__.strip("_"))
def test_damage_is_found_in_a_model_and_in_a_directory(change, model, folder):
    """Pitfall 1: among the damage is -0.0, which sparse kernels read as a number."""
    with torch.no_grad():
        change(model.get_submodule(NAME).weight)
    _edit(folder, change)
    for report in (verify(model), verify(folder)):
        assert not report.ok and report.problems == [DAMAGE[change]]
        assert f": 1 problems\n{DAMAGE[change]}" in str(report)
        with pytest.raises(ValueError, match=r"1 problems in the weights to deploy; nothing was written:") as error:
            report.raise_for_problems()
        assert DAMAGE[change] in str(error.value)


def test_infinity_is_a_number(model):
    with torch.no_grad():
        weight = model.get_submodule(NAME).weight
        weight[tuple((weight != 0).nonzero()[0].tolist())] = float("inf")
    assert verify(model).ok


def test_every_problem_is_listed(folder):
    for change in DAMAGE:
        _edit(folder, change)
    _edit_record(folder, lambda words: words["layers"].update({"bert.encoder.layer.9.output.dense": "2:4"}))
    problems = verify(folder).problems
    assert len(problems) == 4
    assert problems[-1] == "bert.encoder.layer.9.output.dense is recorded as sparse, and the model has no such layer."


def test_a_layer_in_the_record_must_be_in_the_file(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors[f"{NAME}.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=rf"copy holds no weight of {NAME}\. Save the model again"):
        verify(folder)


def test_a_layer_that_left_the_model_is_a_problem(model):
    model.config.nxm_config["layers"]["no.such"] = "2:4"
    assert verify(model).problems == ["no.such is recorded as sparse, and the model has no such layer."]


def test_each_layer_is_held_to_the_pattern_on_record(folder):
    _edit_record(folder, lambda words: words["layers"].update({NAME: "1:4"}))
    (problem,) = verify(folder).problems
    assert problem == f"{NAME} breaks 1:4 in {64 * 32 // 4} places."


def test_a_record_of_nothing_is_a_problem(folder):
    _edit_record(folder, lambda words: words.update(layers={}))
    assert verify(folder).problems == ["No layer was found to verify."]


@pytest.mark.parametrize(
    ("pattern", "ok"), [("2:4", True), (NM(2, 4), True), ("4:8", True), ("1:4", False), ("4x2", True)], ids=str
)
def test_the_argument_pattern_asks_for_another_one(pattern, ok, model, deployed):
    for report in (verify(model, pattern), verify(deployed, pattern)):
        assert report.ok is ok and len(report.layers) == 12
        assert {layer.pattern for layer in report.layers} == {parse(pattern)}


@pytest.mark.parametrize("text", [text for kind in PATTERNS for text in kind.examples if text.count(":") < 2])
def test_a_projected_model_without_a_record_is_ok_by_every_pattern_that_fits(text):
    model = make_bert()
    try:
        parse(text).check((32, 32))
    except ValueError:
        with pytest.raises(ValueError, match=r"shape \(32, 32\)"):
            verify(model, pattern=text)
        return
    dense = verify(model, pattern=text)
    assert dense.ok is (text == "dense") and dense.density == 1.0
    with torch.no_grad():
        for layer in dense.layers:
            weight = model.get_submodule(layer.name).weight
            weight.copy_(parse(text).project(weight))
    report = verify(model, pattern=text)
    kept = sum(parse(text).kept(layer.shape) for layer in report.layers)
    assert report.ok and sum(layer.nonzeros for layer in report.layers) == kept


def test_a_model_without_a_record_needs_a_pattern(tmp_path):
    with pytest.raises(ValueError, match=r'no record of being sparse.*pattern="2:4"'):
        verify(make_bert())
    make_bert().save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"--pattern 2:4, or verify\(dir, pattern='2:4'\)"):
        verify(tmp_path)
    assert not verify(tmp_path, "2:4").ok and not verify(make_bert(), "2:4").ok


def test_the_stamp_stands_in_for_the_file(folder):
    (folder / "nxm_config.json").unlink()
    assert verify(folder).ok
    _edit(folder, _break_pattern)
    assert verify(folder).problems == [DAMAGE[_break_pattern]]


def test_a_directory_that_holds_no_model_is_an_error_that_says_so(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="nothing does not exist; it must be a directory"):
        verify(tmp_path / "nothing")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FileNotFoundError, match=r"nothing holds no config\.json; it must be a directory"):
        verify(tmp_path / "nothing")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds neither model.safetensors nor"):
        verify(folder)


def test_a_variant_is_verified_if_it_is_alone_and_else_a_note_says_that_it_is_not(model, tmp_path):
    layer = model.bert.encoder.layer[0].output.dense
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        layer.weight += 1
    model.save_pretrained(tmp_path, variant="fp16")
    assert verify(tmp_path).ok and "Not checked: fp16. Load one by" in verify(tmp_path).note
    (tmp_path / "model.safetensors").unlink()
    report = verify(tmp_path)
    assert not report.ok and [each.name for each in report.layers if each.violations] == [
        "bert.encoder.layer.0.output.dense"
    ]
    assert "fp16" not in report.note


@pytest.mark.parametrize("left", [0, 5, 1000])
def test_a_torn_file_is_an_error_that_names_it(left, folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read .* Save the model again"):
        verify(folder)


def test_a_record_that_is_no_json_is_an_error_that_names_it(folder):
    (folder / "nxm_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"nxm_config.json is not JSON"):
        verify(folder)


def test_a_model_of_an_unknown_class_is_an_error_that_says_what_to_do(folder):
    words = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**words, "architectures": ["MyBert"]}))
    with pytest.raises(ValueError, match=r"was saved from MyBert.*verify\(model\)"):
        verify(folder)


def test_a_report_prints_as_a_table(deployed):
    lines = str(verify(deployed)).splitlines()
    assert lines[0].split() == ["layer", "role", "shape", "pattern", "density"]
    assert lines[2].split() == ["bert.encoder.layer.0.attention.self.query", "query", "32x32", "2:4", "0.5000"]
    assert lines[-1] == "12 layers, density 0.5000: ok" and len(lines) == 2 + 12 + 1
    (row,) = [line for line in lines if line.startswith(NAME)]
    assert row.split()[1:] == ["ffn_in", "64x32", "2:4", "0.5000"]


def test_looking_changes_nothing(model, deployed):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    files = {path: path.read_bytes() for path in deployed.iterdir()}
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    verify(model), verify(deployed), verify(deployed, "2:4")
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {path: path.read_bytes() for path in deployed.iterdir()} == files


def test_half_precision_weights_are_verified_too(model, tmp_path):
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    assert verify(model).ok and verify(tmp_path).ok and verify(tmp_path).density == 0.5


def test_the_record_names_every_layer_with_its_pattern(deployed):
    assert SparsityRecord.from_pretrained(deployed).layers == {layer.name: "2:4" for layer in verify(deployed).layers}


@pytest.mark.parametrize("in_root", [True, False])
def test_a_container_is_verified_inspected_and_loaded_where_it_has_put_its_model(in_root, tmp_path):
    encoder = make_encoder(in_root=in_root)
    prune(encoder, "1:4")
    encoder.save_pretrained(tmp_path)
    assert verify(tmp_path).ok and verify(tmp_path).density == 0.25 == verify(encoder).density
    assert {layer.name for layer in verify(tmp_path).layers} == {layer.name for layer in verify(encoder).layers}
    assert {layer.pattern for layer in inspect(tmp_path).layers} == {"1:4"}
    assert_equal_weights(load_model(tmp_path), encoder[0].model)
    other = make_encoder(1)[0].model
    load_weights(tmp_path, other)
    assert_equal_weights(other, encoder[0].model)
    assert not verify(tmp_path, "dense").problems and not verify(encoder, "2:4").problems
    (tmp_path / ("" if in_root else "0_Backbone") / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds neither model\.safetensors"):
        verify(tmp_path)


def test_targets_in_memory_and_in_files_are_verified_alike(model, folder):
    _edit(folder, _break_pattern)
    with torch.no_grad():
        _break_pattern(model.get_submodule(NAME).weight)
    targets = Plan.of(make_bert(), NxMConfig("asp")).targets
    written = verify_written(folder, make_bert(1), targets)
    assert written == replace(verify(folder), note="") == verify_targets(Plan.of(model, NxMConfig("asp")).targets)
    assert written.problems == [DAMAGE[_break_pattern]] and verify_targets([]) == Verification(())


class Twice(Shards):
    """Shards of two processes that hold alike parts: their numbers add up to twice those of one."""

    def total(self, numbers):
        return 2 * super().total(numbers)


@pytest.mark.parametrize("text", ["2:4", "unstructured:0.5"])
def test_what_processes_find_in_their_parts_adds_up_unless_they_have_found_it_together(text):
    with group_of_one() as group:
        model = make_bert()
        prune(model, text)
        with torch.no_grad():
            _break_pattern(weight := model.get_submodule(NAME).weight)
            _negative_zero(weight)
        fully_shard(model, mesh=group.mesh)
        plan = Plan.of(model, NxMConfig("asp", text))
        shards = Twice(plan.shards.model, plan.shards.mesh)
        alone, both = (
            verify_targets([replace(target, shards=each) for target in plan.targets]) for each in (plan.shards, shards)
        )
        assert alone == verify(model, text) and f"{NAME} breaks {text} in 1 places." in alone.problems
        for target, one, two in zip(plan.targets, alone.layers, both.layers, strict=True):
            assert (one.shape, one.pattern) == (target.layer.shape, target.pattern)
            again = {name: 2 * getattr(one, name) for name in ("nonzeros", "negative_zeros", "not_finite")}
            assert two == replace(one, violations=one.violations * (2 if text == "2:4" else 1), **again)


def test_a_sharded_model_is_verified_as_its_parts_are_and_not_as_a_step_has_gathered_it():
    with group_of_one() as group:
        model = make_bert()
        prune(model, "2:4")
        for block in model.bert.encoder.layer:
            fully_shard(block, mesh=group.mesh, reshard_after_forward=False)
        fully_shard(model, mesh=group.mesh)
        part = local(model.get_submodule(NAME).weight)
        model(input_ids=torch.ones(1, 4, dtype=torch.long))
        with torch.no_grad():
            _break_pattern(part)
        assert verify(model).problems == [DAMAGE[_break_pattern]]


def test_what_was_counted_is_believed_and_the_rest_is_counted(model):
    targets = Plan.of(model, NxMConfig("asp")).targets
    counted = {NAME: EntryCounts(nonzeros=7, violations=1, negative_zeros=2, nans=3)}
    for plain, found in zip(verify_targets(targets).layers, verify_targets(targets, counted).layers, strict=True):
        wrong = dict(nonzeros=7, violations=1, negative_zeros=2, not_finite=3) if plain.name == NAME else {}
        assert found == replace(plain, **wrong)


def test_files_of_a_save_that_was_stopped_are_put_in_place_before_they_are_verified(folder):
    inner = folder / COMPLETE / "copy"
    inner.mkdir(parents=True)
    (folder / "model.safetensors").rename(inner / "model.safetensors")
    (folder / COMPLETE / "files.json").write_text(json.dumps({"new": ["model.safetensors"], "outdated": []}))
    assert verify(folder).ok and not (folder / COMPLETE).exists()


def test_a_layer_whose_weight_a_quantization_hides_is_an_error(model):
    module, name = NAME.rsplit(".", 1)
    setattr(model.get_submodule(module), name, torch.nn.Identity())
    model.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(ValueError, match=rf"zeros of {NAME} cannot be counted in a model quantized by gptq\. Verify"):
        verify(model)


def test_of_a_model_with_an_adapter_it_is_said_that_the_adapter_stands_beside_the_layers(model):
    plain = verify(model)
    model._hf_peft_config_loaded = True  # by `add_adapter` of transformers
    assert verify(model) == replace(plain, note=UNMERGED) and not plain.note


def test_files_that_differ_from_the_manifest_are_named_beside_what_is_in_the_layers(deployed, tmp_path):
    folder = shutil.copytree(deployed, tmp_path / "copy")
    assert verify(folder).ok and verify(folder).changed == ()
    _edit(folder, _break_pattern)
    report = verify(folder)
    assert [name for name, _ in report.changed] == ["model.safetensors"] and len(report.layers) == 12
    assert report.problems[1:] == [DAMAGE[_break_pattern]] and "Restore them" in str(report)
    (folder / "model.safetensors").write_bytes(b"")
    assert verify(folder).layers == () and verify(folder).changed[0][0] == "model.safetensors"


def test_a_directory_without_a_manifest_is_verified_with_a_note_that_says_so(deployed, model, folder):
    found = verify(folder)
    assert found.ok and "no nxm_manifest.json" in found.note
    assert str(found) == f"{verify(deployed)}\n{found.note}"
    assert not verify(deployed).note and not verify(model).note


def test_the_record_beside_an_adapter_comes_before_that_of_its_base(folder, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    save_file({"a": torch.ones(2)}, adapter / "adapter_model.safetensors")
    shutil.copy(folder / "nxm_config.json", adapter / "nxm_config.json")
    _edit_record(adapter, lambda words: words.update(layers={NAME: "1:4"}))
    assert verify(adapter).problems == [f"{NAME} breaks 1:4 in {64 * 32 // 4} places."] and verify(folder).ok


def test_the_layers_of_an_adapter_are_those_of_its_base_and_it_has_to_be_whole(deployed, tmp_path):
    write = (tmp_path / "adapter_config.json").write_text
    write(json.dumps({"base_model_name_or_path": str(deployed)}))
    with pytest.raises(FileNotFoundError, match=r"holds no adapter_model\.safetensors"):
        verify(tmp_path)
    save_file({"a": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    found = verify(tmp_path)
    assert found.layers == verify(deployed).layers and found.ok
    assert found.note.startswith(f"These are the layers of the base model {deployed}. The adapter stands beside them")
    assert str(found).endswith(found.note) and verify(tmp_path, "1:4").problems[0].endswith("breaks 1:4 in 256 places.")


@pytest.mark.parametrize("pattern", ["2:4", {"ffn": "2:4", "default": "unstructured:0.5"}], ids=["all", "some"])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_model_whose_layers_are_packed_in_memory_is_verified_as_what_they_stand_for(family, pattern, tmp_path):
    model, _, folder = save_both(tmp_path, family, pattern)
    packed = type(model).from_pretrained(folder)
    assert any(isinstance(module, PackedLinear) for module in packed.modules())
    for found in (verify(packed), verify(folder)):
        assert found.ok and {*found.layers} == {*verify(model).layers}


def test_weights_are_looked_at_in_the_pass_that_compares_their_files(deployed, folder, monkeypatch):
    """A second look would take as long as the first."""
    before = verify(deployed)

    def read_again(*_):
        raise AssertionError("the files were read before")

    monkeypatch.setattr(sys.modules["nxm_hf.storage.verify"], "layer_weights", read_again)
    assert verify(deployed) == before and before.ok
    with pytest.raises(AssertionError, match="read before"):
        verify(folder)  # which has no manifest
