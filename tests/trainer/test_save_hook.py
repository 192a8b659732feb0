"""SaveHook: what a Trainer with NxMCallback saves has the record and the card, and the model stays what it was."""

import copy
import inspect
import pickle
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertForSequenceClassification, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from nxm_hf import NxMConfig, prune, verify
from nxm_hf.layers.plan import Plan
from nxm_hf.storage.manifest import changed_files
from nxm_hf.storage.replacing import SAVING
from nxm_hf.trainer.save_hook import SaveHook
from tests.support.containers import Encoder, make_encoder
from tests.support.models import SHAPE, TOKENS, assert_equal_weights, make_bert
from tests.support.saving import lose_a_bit
from tests.support.sharded_loops import MIXTURE
from tests.support.training import make_12_step_trainer


def trained(folder, **changes):
    trainer = make_12_step_trainer(folder, "sr-ste", kind="NxMCallback", save_strategy="no", max_steps=2, **changes)
    trainer.train()
    return trainer


def test_save_model_after_the_callback_writes_the_record_and_the_card(tmp_path):
    trainer = trained(tmp_path)
    trainer.save_model(tmp_path / "end")
    assert "## Sparsity" in (tmp_path / "end" / "README.md").read_text()
    assert (tmp_path / "end" / "nxm_config.json").is_file() and verify(tmp_path / "end").ok
    trainer.model.save_pretrained(save_directory=tmp_path / "hand")
    assert (tmp_path / "hand" / "nxm_config.json").read_text() == (tmp_path / "end" / "nxm_config.json").read_text()


def test_weights_that_were_trained_on_without_us_get_neither_record_nor_card(tmp_path):
    trainer = trained(tmp_path)
    with torch.no_grad():
        trainer.model.bert.encoder.layer[0].output.dense.weight += 1
    trainer.save_model(tmp_path / "end")
    assert not {"nxm_config.json", "README.md"} & {path.name for path in (tmp_path / "end").iterdir()}


def test_the_training_view_is_saved_without_a_record(tmp_path):
    model = make_bert()
    SaveHook(model, model).attach()
    model.save_pretrained(tmp_path)
    assert not {"nxm_config.json", "README.md"} & {path.name for path in tmp_path.iterdir()}
    prune(model, "2:4")
    model.save_pretrained(tmp_path)
    assert verify(tmp_path).ok and (tmp_path / "nxm_config.json").is_file()


def test_a_card_that_a_container_writes_with_its_weights_keeps_the_section(tmp_path):
    encoder = make_encoder()
    SaveHook(encoder, encoder[0].model).attach()
    prune(encoder, "1:4")
    for save in (encoder.save, encoder.save_pretrained, encoder.save):
        save(tmp_path)
        card = (tmp_path / "README.md").read_text()
        assert card.count("## Sparsity") == 1 and "# An encoder" in card
        assert (tmp_path / "nxm_manifest.json").is_file() and verify(tmp_path).ok
    assert verify(tmp_path).density == 0.25


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_and_pickles_of_the_model_have_a_save_pretrained_of_their_own(duplicate, tmp_path):
    model = make_bert()
    SaveHook(model, model).attach()
    twin = duplicate(model)
    with torch.no_grad():
        twin.classifier.bias += 1
    assert inspect.ismethod(twin.save_pretrained) and not inspect.ismethod(model.save_pretrained)
    twin.save_pretrained(tmp_path)
    assert_equal_weights(BertForSequenceClassification.from_pretrained(tmp_path), twin)
    assert b"nxm_hf" not in pickle.dumps(model)


def test_a_second_hook_takes_the_place_of_the_first_and_detach_leaves_no_trace():
    model = make_bert()
    before = set(vars(model))
    for _ in range(2):
        hook = SaveHook(model, model)
        hook.attach()
    assert inspect.signature(model.save_pretrained) == inspect.signature(make_bert().save_pretrained)
    assert model.save_pretrained.__wrapped__.__func__ is PreTrainedModel.save_pretrained
    hook.detach()
    assert set(vars(model)) == before
    SaveHook(torch.nn.Linear(2, 2), model).attach()  # which has no save_pretrained


def test_a_save_after_one_that_failed_is_hooked_too(tmp_path):
    encoder = make_encoder()
    SaveHook(encoder, encoder[0].model).attach()
    prune(encoder, "2:4")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        encoder.save(tmp_path / "file")
    encoder.save(tmp_path / "end")
    assert (tmp_path / "end/nxm_config.json").is_file()


def test_a_save_that_is_called_by_another_one_is_done_once(tmp_path):
    places = []

    class Noting(Encoder):
        def save(self, path, card=True):
            places.append(path)
            super().save(path, card=card)

    encoder = Noting(make_encoder()[0].model)
    SaveHook(encoder, encoder[0].model).attach()
    prune(encoder, "2:4")
    encoder.save_pretrained(str(tmp_path))
    assert [place.count(SAVING) for place in places] == [1]


# -- files are compared with memory ------------------------------------------------------------------------------------

DENSE, EMBEDDINGS = "encoder.layer.1.output.dense.weight", "embeddings.word_embeddings.weight"


@pytest.mark.parametrize("name", [DENSE, EMBEDDINGS], ids=["pruned", "not pruned"])
@pytest.mark.parametrize("place", ["checkpoint", "end"])
def test_a_bit_that_is_lost_on_the_way_to_the_disk_is_an_error(place, name, tmp_path, monkeypatch):
    lose_a_bit(monkeypatch, BertForSequenceClassification, "save_pretrained", name)
    steps = dict(save_strategy="steps", save_steps=2) if place == "checkpoint" else {"save_strategy": "no"}
    trainer = make_12_step_trainer(tmp_path, "sr-ste", kind="NxMCallback", max_steps=2, **steps)
    says = rf"^bert\.{name.removesuffix('.weight')}.* is not the weight that was saved; the disk may be full or failing"
    with pytest.raises(RuntimeError, match=says):
        trainer.train()
        trainer.save_model(tmp_path / "end")
    assert not any((tmp_path / "end").glob("*"))
    assert not (tmp_path / "checkpoint-2" / "nxm_manifest.json").exists()


@pytest.mark.parametrize("lost", [True, False])
@pytest.mark.parametrize("in_root", [True, False])
def test_the_weights_of_a_container_are_compared_too(in_root, lost, tmp_path, monkeypatch):
    encoder = make_encoder(in_root=in_root)
    inner = encoder[0].model
    prune(inner, "2:4")
    if lost:
        lose_a_bit(monkeypatch, Encoder, "save", DENSE)
    SaveHook(encoder, inner, plan=Plan.of(inner, NxMConfig("asp"))).attach()
    with pytest.raises(RuntimeError, match=r"output\.dense.* is not the weight") if lost else nullcontext():
        encoder.save(tmp_path / "end")
    assert lost or changed_files(tmp_path / "end") == {}
    assert (tmp_path / "end" / "nxm_manifest.json").exists() is not lost


@pytest.mark.parametrize("lost", ["", DENSE, EMBEDDINGS], ids=["nothing", "pruned", "not pruned"])
@pytest.mark.parametrize("given", ["state_dict", "variant", "both"])
def test_what_a_caller_saves_of_other_weights_or_under_other_names_is_compared_with_that(
    given, lost, tmp_path, monkeypatch
):
    model = make_bert()
    prune(model, "2:4")
    SaveHook(model, model, plan=Plan.of(model, NxMConfig("asp"))).attach()
    model.save_pretrained(tmp_path)
    before = load_file(tmp_path / "model.safetensors")
    half = {name: tensor.half() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model.classifier.bias += 1
    changes = {"state_dict": {"state_dict": half}, "variant": {"variant": "fp16"}}
    changes["both"] = changes["state_dict"] | changes["variant"]
    if lost:
        SaveHook(model, model).detach()
        lose_a_bit(monkeypatch, BertForSequenceClassification, "save_pretrained", lost)
        SaveHook(model, model, plan=Plan.of(model, NxMConfig("asp"))).attach()
    says = rf"{lost.removesuffix('.weight')}.* is not the weight that was saved"
    with pytest.raises(RuntimeError, match=says) if lost else nullcontext():
        model.save_pretrained(tmp_path, **changes[given])
    assert changed_files(tmp_path) == {} and (tmp_path / "nxm_manifest.json").exists()
    if lost:
        assert load_file(tmp_path / "model.safetensors").keys() == before.keys()
        assert not list(tmp_path.glob("*fp16*"))


@pytest.mark.parametrize("lost", ["", "model.embed_tokens.weight", "lm_head.weight"])
def test_each_copy_of_a_tied_weight_is_compared(lost, tmp_path, monkeypatch):
    """A state dict in half precision has two of them, and `from_pretrained` reads both."""
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, **TOKENS, tie_word_embeddings=True))
    prune(model, "2:4")
    half = {name: tensor.half() for name, tensor in model.state_dict().items()}
    if lost:
        lose_a_bit(monkeypatch, LlamaForCausalLM, "save_pretrained", lost)
    SaveHook(model, model, plan=Plan.of(model, NxMConfig("asp"))).attach()
    with pytest.raises(RuntimeError, match=rf"^{lost} in .* is not the weight") if lost else nullcontext():
        model.save_pretrained(tmp_path, state_dict=dict(half))
    assert lost or load_file(tmp_path / "model.safetensors").keys() == half.keys()


@pytest.mark.parametrize("lost", [False, True])
def test_a_state_dict_is_compared_under_other_names_and_in_pieces_too(lost, tmp_path, monkeypatch):
    model = MIXTURE["mixtral"]()
    prune(model, "2:4")
    if lost:
        lose_a_bit(monkeypatch, type(model), "save_pretrained", "experts.0.w1.weight")
    SaveHook(model, model, plan=Plan.of(model, NxMConfig("asp"))).attach()
    with pytest.raises(RuntimeError, match=r"experts\.gate_up_proj.* is not the weight") if lost else nullcontext():
        model.save_pretrained(tmp_path, state_dict=dict(model.state_dict()))
    assert lost or changed_files(tmp_path) == {}
