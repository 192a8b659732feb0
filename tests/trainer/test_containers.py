"""Training a model inside a container, of the shape of a SentenceTransformer: names, checkpoints, resuming, saving."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertModel, TrainerCallback

import nxm_hf
from nxm_hf import NxMCallback, NxMConfig, NxMTrainer, SparsityRecord, verify
from nxm_hf.layers.find import find_layers
from nxm_hf.storage.checkpoints import complete_checkpoint
from tests.support.containers import QUERY, Encoder, EncoderTrainer, Pair, make_encoder, make_pairs
from tests.support.models import assert_equal_weights, make_arguments, make_rows
from tests.support.training import KINDS, engine_of, is_sparse

PLACES = {"root": "", "own folder": "0_Backbone"}
EVERY = pytest.mark.parametrize("kind", KINDS)
ANYWHERE = pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)


class SparseEncoderTrainer(NxMTrainer, EncoderTrainer):
    pass


def make_trainer(folder, kind, sparsity="sr-ste", model=None, place="", callbacks=(), **changes):
    model = make_encoder(in_root=not place) if model is None else model
    words = dict(
        max_steps=6, per_device_train_batch_size=4, save_steps=2, learning_rate=1e-2, remove_unused_columns=False
    )
    args = make_arguments(folder, **{**words, **changes})
    options = dict(model=model, args=args, train_dataset=make_pairs(), eval_dataset=make_pairs(8))
    torch.manual_seed(5)
    if kind == "NxMTrainer":
        return SparseEncoderTrainer(**options, sparsity=sparsity, callbacks=list(callbacks))
    return EncoderTrainer(**options, callbacks=[*callbacks, NxMCallback(sparsity)])


@EVERY
@ANYWHERE
def test_checkpoints_and_the_saved_model_are_verified_under_the_names_of_what_was_saved(kind, place, tmp_path):
    trainer = make_trainer(tmp_path, kind, place=place)
    trainer.train()
    trainer.save_model(tmp_path / "end")
    plain = BertModel.from_pretrained(tmp_path / "end" / place)
    names = {layer.name: "2:4" for layer in find_layers(plain)}
    assert QUERY in names and is_sparse(plain)
    assert_equal_weights(plain, trainer.model[0].model)
    for folder in (tmp_path / "end", tmp_path / "checkpoint-4"):
        assert verify(folder).ok and SparsityRecord.from_pretrained(folder).layers == names
        assert json.loads((folder / "nxm_config.json").read_text())["layers"] == names
        assert json.loads((folder / place / "config.json").read_text())["nxm_config"]["layers"] == names
        card = (folder / "README.md").read_text()
        assert "# An encoder" in card and QUERY in card
    assert verify(trainer.model).ok and verify(trainer.model).density == 0.5
    assert verify(plain).ok and verify(tmp_path / "end" / place).ok


@EVERY
@ANYWHERE
def test_a_model_that_is_saved_by_hand_after_the_training_is_verified_by_its_stamp(kind, place, tmp_path):
    trainer = make_trainer(tmp_path, kind, place=place, save_strategy="no")
    trainer.train()
    Encoder.save(trainer.model, tmp_path / "hand")
    assert not (tmp_path / "hand" / "nxm_config.json").exists()
    assert verify(tmp_path / "hand").ok and len(verify(tmp_path / "hand").layers) == 12
    weights = load_file(tmp_path / "hand" / place / "model.safetensors")
    weights[f"{QUERY}.weight"][0, :4] = 1.0
    trainer.model[0].model.load_state_dict(weights)
    Encoder.save(trainer.model, tmp_path / "hand")
    assert verify(tmp_path / "hand").problems == [f"{QUERY} breaks 2:4 in 1 places."]


@EVERY
@pytest.mark.parametrize(("recipe", "place"), [("sr-ste", ""), ("admm", "0_Backbone")])
def test_a_resumed_training_is_the_unbroken_one_bit_for_bit(kind, recipe, place, tmp_path):
    whole = make_trainer(tmp_path / "whole", kind, recipe, place=place)
    whole.train()
    resumed = make_trainer(tmp_path / "whole", kind, recipe, model=make_encoder(7, in_root=not place))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert_equal_weights(whole.model, resumed.model)


def test_both_kinds_train_alike_and_resume_from_the_newest_checkpoint(tmp_path):
    ours = make_trainer(tmp_path / "one", "NxMTrainer")
    ours.train()
    theirs = make_trainer(tmp_path / "two", "NxMCallback")
    theirs.train()
    assert_equal_weights(ours.model, theirs.model)
    again = make_trainer(tmp_path / "two", "NxMTrainer", max_steps=8)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 8 and verify(again.model).ok


@EVERY
def test_a_changed_head_of_a_checkpoint_is_found_although_no_layer_of_it_is_pruned(kind, tmp_path):
    make_trainer(tmp_path, kind).train()
    folder = tmp_path / "checkpoint-4"
    encoder = Encoder.load(folder)
    torch.nn.init.ones_(encoder[1].linear.bias)
    encoder[1].save(folder / "1_Head")
    with pytest.raises(ValueError, match=r"1_Head/model\.safetensors has changed since it was saved"):
        make_trainer(tmp_path, kind).train(resume_from_checkpoint=str(folder))
    complete_checkpoint(folder)  # a manifest that fits
    with pytest.raises(ValueError, match="its others differ"):
        make_trainer(tmp_path, kind).train(resume_from_checkpoint=str(folder))


def test_a_training_that_restarts_after_it_ran_out_of_memory_begins_from_its_checkpoint(tmp_path):
    """Trainer then calls its loop again, with smaller batches, and does not load the checkpoint anew."""
    first, second = make_encoder(), make_encoder()
    first[1].requires_grad_(False)  # so that the model inside is all that has to be loaded
    second[1].requires_grad_(False)
    make_trainer(tmp_path, "NxMTrainer", model=first).train()

    class OutOfMemory(TrainerCallback):
        raised = False

        def on_step_end(self, args, state, control, **kwargs):
            if not self.raised:
                self.raised = True
                raise RuntimeError("CUDA out of memory.")

    options = dict(max_steps=8, save_strategy="no", auto_find_batch_size=True, callbacks=[OutOfMemory()])
    trainer = make_trainer(tmp_path, "NxMTrainer", model=second, **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert trainer.state.global_step == 8 and verify(trainer.model).ok


@EVERY
def test_the_best_model_is_loaded_at_the_end_and_stays_sparse(kind, tmp_path):
    often = dict(eval_strategy="steps", eval_steps=2, load_best_model_at_end=True)
    often |= dict(metric_for_best_model="loss", greater_is_better=True)  # the first is the worst, hence the best
    trainer = make_trainer(tmp_path, kind, learning_rate=1e-3, **often)
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert_equal_weights(trainer.model, Encoder.load(tmp_path / "checkpoint-2"))
    trainer.save_model(tmp_path / "end")
    assert verify(tmp_path / "end").ok and verify(trainer.model).ok


def test_admm_prunes_with_the_rows_of_the_training_data(tmp_path, caplog):
    """The rows are two texts each, and the model inside takes one."""
    with caplog.at_level("INFO", "nxm_hf"):
        trainer = make_trainer(tmp_path, "NxMCallback", "admm", save_strategy="no")
        trainer.train()
    assert not [record.message for record in caplog.records if "fisher" in record.message]
    assert any("alps pruned 12 layers with 8 batches" in record.message for record in caplog.records)


def test_the_model_inside_keeps_its_masks_without_being_told(tmp_path, caplog):
    make_trainer(tmp_path, "NxMCallback", save_strategy="no").train()
    trainer = make_trainer(tmp_path, "NxMTrainer")
    trainer.train()
    inner = trainer.model[0].model
    before = {layer.name: layer.weight != 0 for layer in find_layers(inner)}
    next_trainer = make_trainer(tmp_path / "next", "NxMTrainer", None, model=trainer.model)
    next_trainer.train()
    assert "This model is sparse already (2:4)" in caplog.text
    assert all(not (layer.weight[~before[layer.name]]).any() for layer in find_layers(inner))
    assert NxMTrainer(model=inner, args=make_arguments(tmp_path), train_dataset=make_rows()).sparsity.pattern == "2:4"


def test_dense_training_of_a_container_removes_the_stamp_of_the_model_inside(tmp_path):
    model = make_encoder()
    nxm_hf.prune(model, "2:4")
    assert verify(model).ok
    make_trainer(tmp_path, "NxMTrainer", "dense", model=model).train()
    assert not hasattr(model[0].model.config, "nxm_config")


def test_a_weight_that_was_not_written_as_it_is_in_memory_is_an_error(tmp_path):
    trainer = make_trainer(tmp_path, "NxMTrainer", save_strategy="no")
    trainer.train()

    class Torn(Encoder):
        def save_pretrained(self, path, card=True):
            super().save_pretrained(path, card)
            make_encoder(1)[0].save(path)

    trainer.model.__class__ = Torn
    with pytest.raises(RuntimeError, match=r"encoder\.layer\.0\.\S+ in \S+ is not the weight that was saved"):
        trainer.save_model(tmp_path / "end")


@EVERY
def test_a_container_of_two_models_is_refused_in_one_sentence(kind, tmp_path):
    message = r"This Pair holds 2 models \(query\.model, document\.model\), and only a container of one .* Prune each"
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, kind, model=Pair())
    make_trainer(tmp_path, "NxMTrainer", "dense", model=Pair())  # which prunes nothing


def test_a_teacher_of_a_container_is_refused_with_what_to_use_instead(tmp_path):
    args = make_arguments(tmp_path)
    with pytest.raises(ValueError, match=r"An? Encoder returns a loss without outputs.*MSELoss"):
        SparseEncoderTrainer(model=make_encoder(), args=args, sparsity="asp", teacher=make_encoder(1))


@pytest.mark.slow
def test_the_saved_model_loads_in_a_process_without_us(tmp_path):
    trainer = make_trainer(tmp_path, "NxMCallback", save_strategy="no")
    trainer.train()
    trainer.save_model(tmp_path / "end")
    program = (
        "import sys; sys.modules['nxm_hf'] = None; from transformers import AutoModel; "
        f"m = AutoModel.from_pretrained({str(tmp_path / 'end')!r}); "
        f"w = m.get_submodule({QUERY!r}).weight; print(int((w == 0).sum()), w.numel())"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    zeros, entries = map(int, result.stdout.split()[-2:])
    assert 2 * zeros == entries


@EVERY
def test_the_engine_names_layers_as_the_model_inside_does(kind, tmp_path):
    trainer = make_trainer(tmp_path, kind, NxMConfig("asp", include="encoder.layer.1", exclude="ffn"), save_steps=6)
    trainer.train()
    engine = engine_of(trainer)
    assert engine.model is trainer.model[0].model and engine.plan.whole is trainer.model
    roles = ("query", "key", "value")
    expected = [f"encoder.layer.1.attention.self.{role}" for role in roles] + ["encoder.layer.1.attention.output.dense"]
    assert list(engine.plan.layers) == expected
