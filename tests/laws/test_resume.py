"""Resuming: a training that was broken off and resumed is the unbroken one, bit for bit."""

import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)

from nxm_hf import NxMCallback, recipes, verify
from nxm_hf.patterns import NM
from tests.support.models import FEW
from tests.support.processes import command, environment
from tests.support.processes.killed_training import ARGUMENTS
from tests.support.training import (
    ROWS,
    STEPS,
    SaveAt,
    assert_same,
    assert_same_end,
    contents,
    engine_of,
    eventful,
    make_trainer,
    records,
    trained,
)

KINDS = ("NxMTrainer", "NxMCallback")
SPARSE = [name for name in recipes.names() if name != "dense"]
RUNS = [(name, "NxMTrainer") for name in SPARSE] + [("ste", "NxMCallback"), ("admm", "NxMCallback")]
OPTIMIZERS = {
    "AdamW, a loop over tensors": dict(optim="adamw_torch", weight_decay=0.1),
    "SGD with momentum": dict(optim="sgd", optim_args="momentum=0.9", learning_rate=0.1),
    "Adafactor": dict(optim="adafactor"),
}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The unbroken training of a recipe, with a checkpoint at every step that is resumed from; made once and kept."""

    @functools.cache
    def run(recipe, kind="NxMTrainer", optimizer=None):
        folder = tmp_path_factory.mktemp("unbroken")
        steps = (3, 8) if optimizer else range(1, STEPS + 1) if kind == "NxMTrainer" else (2, 3, 4, 5, 6, 8)
        trainer = make_trainer(
            folder, eventful(recipe), kind, callbacks=[SaveAt(*steps)], **OPTIMIZERS.get(optimizer, {})
        )
        assert trainer.model.config.hidden_dropout_prob > 0
        trainer.train()
        assert trainer.state.global_step == STEPS
        return trainer

    return run


def checkpoint_of(trainer, step):
    return Path(trainer.args.output_dir) / f"checkpoint-{step}"


def resume(whole, at, folder, recipe, kind="NxMTrainer", **changes):
    """Resume the training `whole` from its checkpoint of step `at`, in a model that began with other weights."""
    checkpoint = checkpoint_of(whole, at)
    trainer = make_trainer(
        folder, eventful(recipe), kind, begin=5, callbacks=[SaveAt(STEPS)], resume_from=checkpoint, **changes
    )
    trainer.train(resume_from_checkpoint=str(checkpoint))
    return trainer


@pytest.mark.parametrize("at", range(1, STEPS))
@pytest.mark.parametrize("recipe", recipes.names())
def test_a_training_resumed_at_any_step_is_the_unbroken_one(recipe, at, unbroken, tmp_path):
    """Pitfall 3: before, at and after the change of a phase, a refresh of the mask and an update of ADMM."""
    whole = unbroken(recipe)
    assert_same_end(whole, resume(whole, at, tmp_path, recipe), at)


@pytest.mark.parametrize(("recipe", "at"), [*((name, 5) for name in recipes.names()), *((name, 2) for name in FEW)])
def test_a_plain_trainer_with_the_callback_resumes_the_unbroken_training(recipe, at, unbroken, tmp_path):
    whole = unbroken(recipe, "NxMCallback")
    assert_same_end(whole, resume(whole, at, tmp_path, recipe, "NxMCallback"), at)


@pytest.mark.parametrize("recipe", recipes.names())
def test_the_trainer_and_the_callback_train_alike(recipe, tmp_path):
    """Without accumulation there is no loss scale to fix, and both do the same work."""
    ends = []
    for kind in KINDS:
        trainer = make_trainer(
            tmp_path / kind, eventful(recipe), kind, callbacks=[SaveAt(5)], gradient_accumulation_steps=1
        )
        trainer.train()
        ends.append((contents(tmp_path / kind / "checkpoint-5"), records(trainer.state.log_history)))
    assert_same(*ends)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("recipe", FEW)
def test_a_training_with_any_optimizer_resumes_as_the_unbroken_one(recipe, optimizer, unbroken, tmp_path):
    """Every recipe with AdamW and SGD in test_engine."""
    if optimizer == "Adafactor" and eventful(recipe).method(NM(2, 4)).edits_moments:
        pytest.skip("Adafactor keeps no moments of single weights, which this recipe edits; test_engine has the error")
    whole = unbroken(recipe, optimizer=optimizer)
    assert_same_end(whole, resume(whole, 3, tmp_path, recipe, **OPTIMIZERS[optimizer]), 3)


def test_a_warmup_a_refresh_and_a_settled_mask_all_happen_in_the_short_training(unbroken):
    """What the laws of this file stand on."""
    phases = [record["nxm/phase"] for record in unbroken("ste").state.log_history if "loss" in record]
    assert phases == [1, 1, 2, 2]  # at steps 2, 4, 6, 8
    assert contents(checkpoint_of(unbroken("ste"), 1))["nxm_state"].keys() != (
        contents(checkpoint_of(unbroken("ste"), 3))["nxm_state"].keys()
    )
    updates = [
        int(next(v for k, v in contents(checkpoint_of(unbroken("admm"), at))["nxm_state"].items() if "/updates" in k))
        for at in (2, 3, 4, 5)
    ]
    assert updates == [1, 1, 2, 2]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX signals")
def test_a_killed_training_resumes_in_a_fresh_process_with_other_seeds(tmp_path):
    """Pitfall 3: SIGKILL in the middle of an accumulation, at a step that was not saved."""
    script = command("killed_training")
    subprocess.run([*script, "train", tmp_path, *KINDS], check=True, env=environment())
    for kind in KINDS:
        assert [path.name for path in (tmp_path / kind / "out").iterdir()] == ["checkpoint-4"]
    subprocess.run([*script, "resume", tmp_path, *KINDS], check=True, env=environment())
    for kind in KINDS:
        make_trainer(tmp_path / "whole" / kind, eventful("admm"), kind, **ARGUMENTS).train()
        ends = (contents(folder / "checkpoint-8") for folder in (tmp_path / "whole" / kind, tmp_path / kind / "out"))
        assert_same(*ends, kind)


# -- where a checkpoint lies, and what may differ -----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_that_was_moved_and_renamed_resumes(kind, unbroken, tmp_path):
    whole = unbroken("admm", kind)
    shutil.copytree(checkpoint_of(whole, 6), tmp_path / "elsewhere" / "ckpt")
    trainer = make_trainer(
        tmp_path,
        eventful("admm"),
        kind,
        begin=5,
        callbacks=[SaveAt(STEPS)],
        resume_from=tmp_path / "elsewhere" / "ckpt",
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "elsewhere" / "ckpt"))
    assert_same_end(whole, trainer, 6)


def test_the_callback_finds_the_checkpoint_in_output_dir_by_itself(unbroken, tmp_path):
    whole = unbroken("admm", "NxMCallback")
    shutil.copytree(checkpoint_of(whole, 3), tmp_path / "checkpoint-3")
    trainer = make_trainer(tmp_path, eventful("admm"), "NxMCallback", begin=5)
    trainer.train(resume_from_checkpoint=True)
    assert_same_end(whole, trainer, 3)


def test_the_callback_asks_for_resume_from_when_the_checkpoint_is_elsewhere(unbroken, tmp_path):
    trainer = make_trainer(tmp_path, eventful("admm"), "NxMCallback")
    with pytest.raises(FileNotFoundError, match=r"Write NxMCallback\(\.\.\., resume_from=PATH\)"):
        trainer.train(resume_from_checkpoint=str(checkpoint_of(unbroken("admm", "NxMCallback"), 3)))


def test_resuming_without_a_checkpoint_says_what_to_do(tmp_path):
    trainer = make_trainer(tmp_path, "ste")
    with pytest.raises(ValueError, match=r"holds no whole checkpoint to resume from\. Train without resume"):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize(("at", "steps"), [(1, 12), (4, 7), (6, 12)])
@pytest.mark.parametrize("recipe", SPARSE)
def test_another_max_steps_is_one_warning_and_no_phase_comes_back(recipe, at, steps, unbroken, tmp_path, caplog):
    folder = checkpoint_of(unbroken(recipe), at)
    trainer = make_trainer(
        tmp_path, eventful(recipe), callbacks=[SaveAt()], max_steps=steps, logging_steps=2, save_steps=500
    )
    trainer.train(resume_from_checkpoint=str(folder))
    ours = [record.message for record in caplog.records if record.name == "nxm_hf"]
    assert [text for text in ours if "Resuming" in text] == [
        f"Resuming towards {steps} steps; the state was made for 8."
    ]
    phases = [record["nxm/phase"] for record in trainer.state.log_history if "loss" in record]
    assert phases == sorted(phases) and trainer.state.global_step == steps
    assert verify(trainer.model).ok


def test_resuming_at_the_end_changes_nothing(unbroken, tmp_path):
    whole = unbroken("ste")
    trainer = make_trainer(tmp_path, eventful("ste"), begin=5)
    trainer.train(resume_from_checkpoint=str(checkpoint_of(whole, STEPS)))
    assert_same(dict(whole.model.state_dict()), dict(trainer.model.state_dict()))
    assert verify(trainer.model).ok


# -- a training that breaks off, and one that begins anew ---------------------------------------------------------


class Interrupt(TrainerCallback):
    """Ctrl-C at one event, when `step` steps are done."""

    def __init__(self, event: str, step: int):
        self.step = step
        setattr(self, event, self._interrupt)

    def _interrupt(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


class Begins(TrainerCallback):
    """Remembers what is trained when a training begins."""

    def __init__(self):
        self.seen = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.seen.append(trained(self.trainer))


INTERRUPTS = [  # in the warm-up, the recipe and the settled phase; inside an accumulation too
    ("on_substep_end", 1),
    ("on_pre_optimizer_step", 4),
    ("on_substep_end", 5),
    ("on_step_end", 6),
]


@pytest.mark.parametrize(("event", "step"), INTERRUPTS)
@pytest.mark.parametrize("recipe", SPARSE)
def test_what_is_saved_after_an_interrupt_is_sparse(recipe, event, step, tmp_path):
    """Pitfall 2: the model after Ctrl-C is what would be shipped, in every phase."""
    trainer = make_trainer(tmp_path, eventful(recipe), callbacks=[Interrupt(event, step)], save_strategy="no")
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    before = trained(trainer)
    trainer.save_model(str(tmp_path / "saved"))
    assert verify(tmp_path / "saved").ok
    assert not (tmp_path / "saved" / "nxm_state.safetensors").exists()
    assert_same(before, trained(trainer), "what the optimizer trains")


@pytest.mark.parametrize(("recipe", "kind"), RUNS)
def test_after_an_interrupt_the_same_trainer_resumes_the_unbroken_training(recipe, kind, unbroken, tmp_path):
    interrupt = Interrupt("on_substep_end", 5)
    trainer = make_trainer(tmp_path, eventful(recipe), kind, callbacks=[interrupt, SaveAt(4, 8)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    interrupt.step = -1
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert_same_end(unbroken(recipe, kind), trainer, 4)


@pytest.mark.parametrize(("recipe", "kind"), RUNS)
def test_after_an_interrupt_training_begins_anew_from_the_dense_weights(recipe, kind, tmp_path):
    interrupt, begins = Interrupt("on_substep_end", 5), Begins()
    trainer = make_trainer(tmp_path, eventful(recipe), kind, callbacks=[interrupt], save_strategy="no")
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    dense, begins.trainer, interrupt.step = trained(trainer), trainer, -1
    trainer.add_callback(begins)
    trainer.train()
    assert_same(dense, begins.seen[0])
    assert trainer.state.global_step == STEPS and verify(trainer.model).ok


def run_out_of_memory(trainer, after, attempts=1):
    """Have the forward pass fail as on a full GPU, after so many forward passes of each of these attempts.

    Returns what was trained at each failure, and what is trained at the begin of each attempt.
    """
    forwards, ran_out, begins = [], [], Begins()
    begins.trainer = trainer
    trainer.add_callback(begins)

    def fail(module, inputs):
        if module.training and len(ran_out) < attempts:
            forwards.append(None)
            if len(forwards) > after:
                forwards.clear()
                ran_out.append(trained(trainer))
                raise RuntimeError("CUDA out of memory.")

    trainer.model.register_forward_pre_hook(fail)
    return ran_out, begins.seen


SEARCHING = dict(auto_find_batch_size=True, per_device_train_batch_size=8)


@pytest.mark.parametrize(("recipe", "kind", "after"), [*((*run, 5) for run in RUNS), ("admm", "NxMTrainer", 0)])
def test_a_smaller_batch_begins_from_the_dense_weights_that_were_trained(recipe, kind, after, tmp_path):
    """`auto_find_batch_size` enters the training again after each CUDA-OOM."""
    trainer = make_trainer(tmp_path, eventful(recipe), kind, save_strategy="no", **SEARCHING)
    ran_out, begins = run_out_of_memory(trainer, after, attempts=2)
    trainer.train()
    assert len(begins) == 3 and trainer._train_batch_size < 8
    assert_same(ran_out, begins[1:])
    assert trainer.state.global_step == STEPS and verify(trainer.model).ok


@pytest.mark.parametrize(("recipe", "kind"), [*((name, "NxMTrainer") for name in FEW), ("admm", "NxMCallback")])
def test_a_smaller_batch_of_a_resumed_training_begins_from_the_checkpoint(recipe, kind, tmp_path):
    make_trainer(tmp_path, eventful(recipe), kind, callbacks=[SaveAt(3)], **SEARCHING).train()
    trainer = make_trainer(tmp_path, eventful(recipe), kind, begin=5, callbacks=[SaveAt()], **SEARCHING)
    others = []

    class Others(TrainerCallback):
        def on_train_begin(self, args, state, control, model, **kwargs):
            others.append({name: weight.clone() for name, weight in model.state_dict().items()})

    trainer.add_callback(Others())
    _, begins = run_out_of_memory(trainer, after=5)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_same(*begins)
    assert_same(*others)
    assert trainer.state.global_step == STEPS and verify(trainer.model).ok


@pytest.mark.parametrize("recipe", recipes.names())
def test_training_twice_begins_the_second_time_from_the_model_that_was_shipped(recipe, tmp_path):
    trainer = make_trainer(tmp_path, eventful(recipe), save_strategy="no")
    trainer.train()
    shipped = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    begins = Begins()
    begins.trainer = trainer
    if recipe != "dense":
        trainer.add_callback(begins)
    trainer.train()
    assert trainer.state.global_step == STEPS
    for name, weight in (begins.seen or [{}])[0].items():
        assert torch.equal(weight, shipped[f"{name}.weight"])
    if recipe != "dense":
        assert verify(trainer.model).ok


@pytest.mark.parametrize("recipe", SPARSE)
def test_an_error_inside_evaluate_leaves_the_weights_that_are_trained(recipe, tmp_path):
    """Caught by the user's own loop or not, training can go on, and a save ships what it would have shipped."""
    trainer = make_trainer(tmp_path, eventful(recipe), eval_strategy="steps", eval_steps=4, save_strategy="no")
    shown = []

    def break_off(module, inputs):
        if not module.training and torch.is_grad_enabled() is False and trainer.state.global_step == 4:
            assert engine_of(trainer).is_deployed
            raise RuntimeError("broken on purpose")
        shown[:] = [parameter.detach().clone() for parameter in module.parameters()]

    hook = trainer.model.register_forward_pre_hook(break_off)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        trainer.train()
    hook.remove()
    assert not engine_of(trainer).is_deployed
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    with engine_of(trainer).deployed():
        assert verify(trainer.model).ok
    assert_same(before, [parameter.detach().clone() for parameter in trainer.model.parameters()])


def test_the_callback_trains_in_a_sequence_to_sequence_trainer_too(tmp_path):
    torch.manual_seed(0)
    sizes = dict(d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32, decoder_ffn_dim=32, vocab_size=50)
    heads = dict(encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=32)
    model = BartForConditionalGeneration(BartConfig(**sizes, **heads))
    rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in ROWS]
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path), max_steps=4, save_steps=2, use_cpu=True, report_to=[], disable_tqdm=True
    )
    trainer = Seq2SeqTrainer(model=model, args=arguments, train_dataset=rows, callbacks=[NxMCallback("ste")])
    trainer.train()
    assert verify(trainer.model).ok and verify(tmp_path / "checkpoint-2").ok
