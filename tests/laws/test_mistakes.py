"""Mistakes that users made, and what they are told: the value, what was needed, and what to type, once."""

import logging

import pytest
import torch
from transformers import Trainer

from nxm_hf import NxMCallback, NxMConfig, NxMTrainer, attach, prune, verify
from tests.support.models import make_arguments, make_bert, make_rows, make_texts, make_tokenizer
from tests.support.saved_models import make_sparse

CONFIGS = [
    (lambda: NxMConfig("admm", rho=0.01), "rho is a setting of the recipe 'admm'. Write settings={'rho': 0.01}."),
    (lambda: NxMConfig("sr_ste", decey=1e-4), "NxMConfig has no decey=. Write settings={'decay': 0.0001}."),
    (lambda: NxMConfig(target_modules=["query"]), "NxMConfig has no target_modules=. Write include=['query']."),
    (lambda: NxMConfig(patern="2:4"), "NxMConfig has no patern=. Write pattern='2:4'."),
    (lambda: NxMConfig("ste", magic=1), "NxMConfig has no magic=; it has recipe, pattern, settings, include,"),
    (lambda: NxMConfig("ste", learning_rate=1e-4), "options such as the learning rate in TrainingArguments."),
    (lambda: NxMConfig("admm", settings={"roh": 1}), "pull, preview; got 'roh'. Write 'rho'."),
    (lambda: NxMConfig("asp", settings={"scores": "fischer"}), "got 'fischer'. Write 'fisher'."),
    (lambda: verify("nowhere"), "nowhere does not exist; it must be a directory that save_pretrained wrote."),
    (lambda: verify(__file__), "test_mistakes.py is a file; it must be a directory that save_pretrained wrote."),
    (lambda: NxMConfig.from_any({"recipe": "admm", "rho": 1}), "Write settings={'rho': 1}."),
    (lambda: NxMConfig(pattern={"fnn": "2:4"}), "has the key 'fnn', which is no role. Write 'ffn'."),
    (lambda: NxMConfig(pattern={"Querry": "2:4"}), "Write 'query'."),
    (lambda: NxMConfig(pattern={"q_proj": "2:4"}), "Its role is 'query'."),
    (lambda: NxMConfig(pattern={"q_proj": "2:4"}), "write pattern=\"2:4\", include=['q_proj']."),
    (lambda: NxMConfig(pattern={}), 'Write {"default": "2:4"}.'),
    (lambda: NxMConfig.from_any("cfg.json"), "There is no config file cfg.json."),
    (lambda: NxMConfig.from_any("amdm"), "Write 'admm'."),
]
PRUNINGS = [
    (lambda: prune("bert-dir"), "prune takes a model, and got the path 'bert-dir'. Load it with from_pretrained, or "
     "name a directory to write with out=, as `nxm prune bert-dir OUT` does."),
    (lambda: prune(make_bert(), "2:4", "alps", make_texts(), nsamples=16), "prune has no nsamples=; write samples=."),
    (lambda: prune(make_bert(), sample=16), "prune has no sample=; write samples=."),
    (lambda: prune(make_bert(), seqlen=16), "prune has no seqlen=; write length=."),
    (lambda: prune(make_bert(), target_modules=["query"]), "prune has no target_modules=; write include=."),
    (lambda: prune(make_bert(), "2:4", "sparsegpt", [""], dampening=1), "prune has no dampening=; write damping=."),
    (lambda: prune(make_bert(), "2:4", "wand"), "Write 'wanda'."),
    (lambda: prune(make_bert(), "2:4", "wanda", "texs.txt"), "There is no file texs.txt."),
    (lambda: prune(make_bert(), "2:4", "wanda", "./texts"), "There is no file ./texts."),
    (lambda: prune(make_bert(hidden_size=36, num_attention_heads=2), "4:8"), "The pattern does not fit 10 layers ("),
]  # fmt: skip


@pytest.mark.parametrize(
    ("mistake", "answer"), [*CONFIGS, *PRUNINGS], ids=lambda case: case if str(case) == case else ""
)
def test_a_mistake_is_answered_with_what_to_type(mistake, answer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, TypeError, FileNotFoundError)) as raised:
        mistake()
    message = str(raised.value)
    assert answer in message and message.count(answer) == 1 and "\n" not in message


def test_sparsity_takes_a_pattern_json_and_the_path_of_a_file(tmp_path):
    config = NxMConfig("sr-ste", "1:4", {"decay": 1e-4})
    (tmp_path / "a.json").write_text(config.to_json_string())
    (tmp_path / "a.yaml").write_text("recipe: sr_ste\npattern: '1:4'\nsettings: {decay: 1.0e-4}\n")
    spellings = (config.to_json_string(), str(tmp_path / "a.json"), tmp_path / "a.yaml", config.to_dict())
    for sparsity in spellings:
        trainer = NxMTrainer(make_bert(), make_arguments(tmp_path), train_dataset=make_rows(), sparsity=sparsity)
        assert trainer.sparsity == config
    assert NxMConfig.from_any("2:4") == NxMConfig(pattern="2:4")


def test_a_copy_of_a_config_takes_no_unknown_keyword_either():
    assert NxMConfig(**{"recipe": "ste", "pattern": "2:4"}) == NxMConfig("ste").replace(pattern="2:4")
    with pytest.raises(ValueError, match="There is no 'patern' to set"):
        NxMConfig("ste").replace(patern="1:4")


def test_one_sentence_answers_for_all_layers_that_the_pattern_does_not_fit(tmp_path):
    model = make_bert(hidden_size=36, num_attention_heads=2, num_hidden_layers=8)
    with pytest.raises(ValueError) as raised:
        NxMTrainer(model, make_arguments(tmp_path), train_dataset=make_rows(), sparsity="4:8")
    message = str(raised.value)
    assert message.startswith("The pattern does not fit 40 layers (bert.encoder.layer.0.attention.")
    assert ", and 35 more). A weight of shape (36, 36) has width 36; 4:8 needs a multiple of 8" in message
    assert message.count("exclude") == 1 and message.count("choose another") == 1 and len(message) < 600


def test_the_class_of_the_callback_is_not_enough(tmp_path):
    with pytest.raises(TypeError, match=r'Write callbacks=\[NxMCallback\("admm"\)\]'):
        Trainer(make_bert(), make_arguments(tmp_path), train_dataset=make_rows(), callbacks=[NxMCallback])


@pytest.mark.parametrize("teacher", ["missing", "./missing", "out/missing/teacher"])
def test_a_teacher_that_is_no_directory_is_not_looked_for_on_the_hub(teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"There is no directory {teacher} to load the teacher from"):
        NxMTrainer(make_bert(), make_arguments(tmp_path), train_dataset=make_rows(), sparsity="ste", teacher=teacher)


def test_a_teacher_on_the_hub_that_is_out_of_reach_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="The teacher nobody/nothing cannot be loaded: ") as raised:
        NxMTrainer(
            make_bert(), make_arguments(tmp_path), train_dataset=make_rows(), sparsity="ste", teacher="nobody/nothing"
        )
    assert "\n" not in str(raised.value)


def test_steps_after_the_last_one_are_warned_of_once(caplog):
    model = make_bert()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = attach(model, optimizer, "ste", total_steps=2)
    with caplog.at_level(logging.WARNING, "nxm_hf"):
        for step in range(5):
            assert len(caplog.records) == (step > 2)
            optimizer.step()
    (record,) = caplog.records
    assert "Step 3 comes after the last one of total_steps=2" in record.message
    engine.finish()


@pytest.mark.parametrize("resume", ["nope", "nope/checkpoint-3"])
def test_a_checkpoint_that_does_not_exist_is_said_not_to_exist(resume, tmp_path):
    trainer = NxMTrainer(make_bert(), make_arguments(tmp_path), train_dataset=make_rows(), sparsity="ste")
    with pytest.raises(ValueError, match=f"valid checkpoint at {resume}: there is no such directory"):
        trainer.train(resume_from_checkpoint=resume)


def test_the_card_and_verify_say_that_a_plain_trainer_fills_the_zeros(tmp_path):
    trainer = NxMTrainer(make_bert(), make_arguments(tmp_path, max_steps=1), train_dataset=make_rows(), sparsity="asp")
    trainer.train()
    trainer.save_model(tmp_path / "sparse")
    card = (tmp_path / "sparse/README.md").read_text()
    assert "A plain `Trainer` fills the zeros again" in card and "NxMTrainer(model=...)" in card
    model = make_bert().from_pretrained(tmp_path / "sparse")
    assert "fills zeros" not in str(verify(model))
    Trainer(model, make_arguments(tmp_path / "plain", max_steps=1), train_dataset=make_rows()).train()
    assert str(verify(model)).count("A plain Trainer fills zeros again; NxMTrainer(model=...)") == 1


def test_calibration_data_is_used_by_default_and_its_absence_is_said():
    given = prune(make_bert(), "2:4", calibration=make_texts(), tokenizer=make_tokenizer(), samples=8, length=16)
    assert given.method == "alps" and all(layer.error is not None for layer in given.layers)
    without = prune(make_bert(), "2:4")
    assert without.method == "magnitude"
    assert str(without).count("There was no calibration data; with it, other methods than magnitude lose less.") == 1


def test_a_training_that_diverged_is_told_so(tmp_path):
    model = make_bert()
    make_sparse(model, tmp_path)
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"The training has diverged\. Lower the learning rate") as raised:
        verify(model).raise_for_problems()
    assert "without nxm_hf" not in str(raised.value)
