"""Training an adapter on a sparse base: the base keeps its masks, and checkpoints know both."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from nxm_hf import NxMConfig, NxMTrainer, SparsityRecord, mask_adapter, prune, verify
from nxm_hf.storage.state_file import read_state
from tests.support.adapters import adapter_of, make_adapted, make_base, peft
from tests.support.models import make_bert
from tests.support.training import KINDS, assert_same, make_trainer, pruned_weights, records

EVERY = pytest.mark.parametrize("kind", KINDS)
MASKED = pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
pytestmark = pytest.mark.filterwarnings("default")  # those of another library are not ours
SHORT = dict(max_steps=6, save_steps=2, logging_steps=2, learning_rate=1e-2, per_device_train_batch_size=4)


@pytest.fixture
def base_folder(tmp_path):
    """A sparse base in a directory, as users have it."""
    make_base().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def load_base(folder):
    return type(make_bert()).from_pretrained(folder)


def train_adapter(folder, kind, model, sparsity=None, resume=None, **changes):
    sparsity = "admm" if sparsity is None and kind == "NxMCallback" else sparsity
    trainer = make_trainer(folder, sparsity, kind, model=model, arguments=SHORT, **changes)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@EVERY
@MASKED
def test_the_base_keeps_its_masks_and_the_adapter_trains(kind, masked, base_folder, tmp_path, caplog):
    model = make_adapted(base=load_base(base_folder), masked=masked)
    before, adapter = pruned_weights(model), adapter_of(model)
    train_adapter(tmp_path, kind, model)
    assert_same(pruned_weights(model), before)
    assert all(not torch.equal(tensor, adapter[name]) for name, tensor in adapter_of(model).items())
    said = [record.message for record in caplog.records if record.name == "nxm_hf"]
    assert said == ["The base of this model is sparse (2:4) and frozen: its masks stay, and the rest trains."]
    assert verify(model).ok and len(verify(model).layers) == 12 and verify(model).density == 0.5
    assert model.config.nxm_config["pruning"]["method"] == "magnitude"


@EVERY
@MASKED
def test_a_checkpoint_and_a_saved_model_hold_the_adapter_and_name_the_base(kind, masked, base_folder, tmp_path):
    trainer = train_adapter(tmp_path, kind, make_adapted(base=load_base(base_folder), masked=masked))
    trainer.save_model(tmp_path / "end")
    recorded = SparsityRecord.from_pretrained(base_folder)
    for folder in (tmp_path / "end", tmp_path / "checkpoint-4"):
        assert not (folder / "model.safetensors").exists()
        assert verify(folder).ok and len(verify(folder).layers) == 12
        assert f"the base model {base_folder}" in str(verify(folder))
        assert SparsityRecord.from_pretrained(folder) == recorded
        card = (folder / "README.md").read_text()
        assert f"layers of the base model `{base_folder}`" in card and "nxm-hf" in card
        assert ("changes kept weights alone" in card) is masked
    state = read_state(tmp_path / "checkpoint-4")
    assert state[1] == {} and state[0]["layers"] == recorded.layers


@EVERY
@MASKED
def test_a_resumed_training_is_the_unbroken_one_bit_for_bit(kind, masked, base_folder, tmp_path):
    whole = train_adapter(tmp_path / "one", kind, make_adapted(base=load_base(base_folder), masked=masked))
    again = make_adapted(7, load_base(base_folder), masked)
    resumed = train_adapter(tmp_path / "one", kind, again, resume=str(tmp_path / "one" / "checkpoint-2"))
    assert_same(dict(whole.model.state_dict()), dict(resumed.model.state_dict()))
    assert records(resumed.state.log_history, 2) == records(whole.state.log_history, 2)


def test_the_newest_complete_checkpoint_is_resumed(base_folder, tmp_path):
    train_adapter(tmp_path, "NxMTrainer", make_adapted(base=load_base(base_folder)))
    (tmp_path / "checkpoint-6" / "adapter_model.safetensors").write_bytes(b"torn")
    model = make_adapted(base=load_base(base_folder))
    trainer = make_trainer(tmp_path, None, model=model, arguments={**SHORT, "max_steps": 8})
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 8


@EVERY
def test_a_checkpoint_on_another_base_is_not_resumed(kind, base_folder, tmp_path):
    train_adapter(tmp_path, kind, make_adapted(base=load_base(base_folder)))
    with pytest.raises(ValueError, match="its targets and others differ"):
        train_adapter(tmp_path, kind, make_adapted(base=make_base(1)), resume=str(tmp_path / "checkpoint-2"))


@EVERY
def test_a_masked_adapter_is_not_resumed_as_a_plain_one(kind, base_folder, tmp_path):
    train_adapter(tmp_path, kind, make_adapted(base=load_base(base_folder), masked=True))
    with pytest.raises(ValueError, match=r"is masked, and that of this model is not\. Call nxm_hf\.mask_adapter"):
        model = make_adapted(base=load_base(base_folder))
        train_adapter(tmp_path, kind, model, resume=str(tmp_path / "checkpoint-2"))


@EVERY
def test_the_best_adapter_is_loaded_at_the_end(kind, base_folder, tmp_path):
    often = dict(eval_strategy="steps", eval_steps=2, load_best_model_at_end=True)
    often |= dict(metric_for_best_model="loss", greater_is_better=True)  # the first is the worst, hence the best
    trainer = train_adapter(tmp_path, kind, make_adapted(base=load_base(base_folder)), **often)
    best = trainer.state.best_model_checkpoint
    assert_same(adapter_of(trainer.model), load_file(f"{best}/adapter_model.safetensors"))
    assert verify(trainer.model).ok


def test_a_training_that_ran_out_of_memory_restarts_from_its_checkpoint(base_folder, tmp_path):
    """Trainer then calls its loop again, with smaller batches, and does not load the checkpoint anew."""
    train_adapter(tmp_path, "NxMTrainer", make_adapted(base=load_base(base_folder)))

    class OutOfMemory(TrainerCallback):
        raised = False

        def on_step_end(self, args, state, control, **kwargs):
            if not self.raised:
                self.raised = True
                raise RuntimeError("CUDA out of memory.")

    options = dict(save_strategy="no", auto_find_batch_size=True, callbacks=[OutOfMemory()])
    model = make_adapted(base=load_base(base_folder))
    trainer = train_adapter(tmp_path, "NxMTrainer", model, resume=str(tmp_path / "checkpoint-4"), **options)
    assert trainer.state.global_step == 6 and verify(trainer.model).ok


@EVERY
@pytest.mark.parametrize("sparsity", ["admm", NxMConfig("sr-ste", "2:4")])
def test_any_recipe_keeps_the_masks_of_a_frozen_base(kind, sparsity, base_folder, tmp_path):
    model = make_adapted(base=load_base(base_folder))
    before = pruned_weights(model)
    trainer = train_adapter(tmp_path, kind, model, sparsity)
    assert_same(pruned_weights(trainer.model), before)


@EVERY
def test_another_pattern_on_a_frozen_base_is_refused(kind, tmp_path):
    with pytest.raises(ValueError, match=r"are frozen and hold '2:4', so training cannot bring them to '1:4'"):
        make_trainer(tmp_path, "1:4", kind, model=make_adapted())


@EVERY
def test_a_dense_frozen_base_is_refused_with_the_order_of_steps(kind, tmp_path):
    with pytest.raises(ValueError, match=r"12 layers to prune are frozen under an adapter.*nxm_hf\.prune\(model"):
        make_trainer(tmp_path, "admm", kind, model=make_adapted(base=make_bert()))


@EVERY
@pytest.mark.parametrize("sparse", [True, False])
def test_a_base_that_trains_beside_an_adapter_is_refused(kind, sparse, tmp_path):
    model = make_adapted(base=make_base() if sparse else make_bert())
    model.base_model.requires_grad_(True)
    with pytest.raises(ValueError, match="12 layers of the base model train beside an adapter, and PEFT would save"):
        make_trainer(tmp_path, "asp", kind, model=model)


@EVERY
def test_a_dense_copy_of_a_sparse_layer_is_refused(kind, tmp_path):
    model = make_adapted(target_modules=["key"], modules_to_save=["query"])
    with pytest.raises(ValueError, match="modules_to_save names 2 sparse layers"):
        make_trainer(tmp_path, "asp", kind, model=model)


@EVERY
@pytest.mark.parametrize("init", ["olora", "pissa"])
def test_an_adapter_that_begins_by_changing_the_base_is_refused(kind, init, tmp_path):
    model = make_adapted(init_lora_weights=init)
    with pytest.raises(
        ValueError, match=f"layers of the base do not hold.*{init}.*write init_lora_weights=True"
    ) as raised:
        make_trainer(tmp_path, "asp", kind, model=model)
    assert "\n" not in str(raised.value)


@EVERY
def test_a_quantized_base_is_refused_with_what_to_do(kind, tmp_path):
    model = make_adapted()
    model.get_base_model().hf_quantizer = SimpleNamespace(is_trainable=True, is_qat_trainable=True)
    with pytest.raises(ValueError, match=r"The base of this adapter is quantized.*without quantization_config"):
        make_trainer(tmp_path, "asp", kind, model=model)


def test_dense_training_of_an_adapter_leaves_the_record_of_the_base(tmp_path):
    model = make_adapted()
    train_adapter(tmp_path, "NxMTrainer", model, "dense", save_strategy="no")
    assert verify(model).ok and model.config.nxm_config["pattern"] == "2:4"


def test_dense_training_of_a_head_leaves_the_record_of_a_frozen_encoder(tmp_path):
    model = make_base()
    model.bert.requires_grad_(False)
    train_adapter(tmp_path, "NxMTrainer", model, "dense", save_strategy="no")
    assert verify(model).ok
    model.bert.requires_grad_(True)
    train_adapter(tmp_path, "NxMTrainer", model, "dense", save_strategy="no")
    assert not hasattr(model.config, "nxm_config")


def test_a_head_on_a_frozen_sparse_encoder_trains_without_a_sparsity(tmp_path):
    model = make_base()
    model.bert.requires_grad_(False)
    trainer = train_adapter(tmp_path, "NxMTrainer", model)
    trainer.save_model(tmp_path / "end")
    assert verify(tmp_path / "end").ok and verify(tmp_path / "checkpoint-2").ok


def test_a_base_in_half_precision_keeps_its_masks_under_an_adapter(tmp_path):
    model = make_adapted(base=make_base().to(torch.bfloat16))
    train_adapter(tmp_path, "NxMTrainer", model)
    assert verify(model).ok


def test_a_bare_encoder_that_was_pruned_is_known_under_a_head(tmp_path):
    encoder = make_bert().bert
    prune(encoder, "2:4")
    encoder.save_pretrained(tmp_path / "encoder")
    model = load_base(tmp_path / "encoder")
    assert verify(model).ok and len(verify(model).layers) == 12
    adapted = make_adapted(base=model)
    train_adapter(tmp_path, "NxMTrainer", adapted).save_model(tmp_path / "end")
    assert verify(tmp_path / "end").ok and len(verify(tmp_path / "end").layers) == 12


def test_peft_alone_loads_a_plain_adapter_and_refuses_a_masked_one(base_folder, tmp_path):
    for masked in (False, True):
        model = make_adapted(base=load_base(base_folder), masked=masked)
        train_adapter(tmp_path, "NxMTrainer", model, save_strategy="no").save_model(tmp_path / str(masked))
    loaded = peft.PeftModel.from_pretrained(load_base(base_folder), tmp_path / "False")
    assert set(adapter_of(loaded)) == set(load_file(tmp_path / "False" / "adapter_model.safetensors"))
    with pytest.raises(ValueError, match="masked_by_nxm_hf"):
        peft.PeftModel.from_pretrained(load_base(base_folder), tmp_path / "True")
    assert (
        json.loads((tmp_path / "True" / "adapter_config.json").read_text())["init_lora_weights"] == "masked_by_nxm_hf"
    )


def test_masking_is_seen_by_the_trainer(tmp_path):
    trainer = NxMTrainer(model=mask_adapter(make_adapted()), args=make_trainer(tmp_path, "asp").args)
    assert trainer.sparsity.recipe == "asp" and trainer.sparsity.pattern == "2:4"
