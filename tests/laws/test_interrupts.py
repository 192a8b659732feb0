"""A training that breaks off leaves sparse weights to save, and can be resumed or begun anew."""

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)

from nxm_hf import NxMCallback, verify
from tests.support.grids import FEW, OTHERS, SPARSE
from tests.support.training import (
    ROWS,
    STEPS,
    InterruptAt,
    SaveAt,
    assert_same,
    engine_of,
    eventful,
    make_trainer,
    trained_weights,
)

# One recipe for each kind of state. That an engine gives back dense weights is tested in tests/engine.
RUNS = [*((name, "NxMTrainer") for name in FEW), ("sr-ste", "NxMCallback"), ("admm", "NxMCallback")]


class Begins(TrainerCallback):
    """Remembers what is trained when a training begins."""

    def __init__(self):
        self.seen = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.seen.append(trained_weights(self.trainer))


INTERRUPTS = [  # in the warm-up, the recipe and the settled phase; inside an accumulation too
    ("on_substep_end", 1),
    ("on_pre_optimizer_step", 4),
    ("on_substep_end", 5),
    ("on_step_end", 6),
]


@pytest.mark.parametrize(
    ("recipe", "event", "step"),
    [(name, *interrupt) for name in FEW for interrupt in INTERRUPTS]
    + [(name, "on_substep_end", 5) for name in OTHERS if name != "dense"],
)
def test_what_is_saved_after_an_interrupt_is_sparse(recipe, event, step, tmp_path):
    """Pitfall 2: the model after Ctrl-C is what would be deployed, in every phase."""
    trainer = make_trainer(tmp_path, eventful(recipe), callbacks=[InterruptAt(step, event)], save_strategy="no")
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    before = trained_weights(trainer)
    trainer.save_model(str(tmp_path / "saved"))
    assert verify(tmp_path / "saved").ok
    assert not (tmp_path / "saved" / "nxm_state.safetensors").exists()
    assert_same(before, trained_weights(trainer), "what the optimizer trains")


@pytest.mark.parametrize(("recipe", "kind"), RUNS)
def test_after_an_interrupt_training_begins_anew_from_the_dense_weights(recipe, kind, tmp_path):
    interrupt, begins = InterruptAt(5, "on_substep_end"), Begins()
    trainer = make_trainer(tmp_path, eventful(recipe), kind, callbacks=[interrupt], save_strategy="no")
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    dense, begins.trainer, interrupt.step = trained_weights(trainer), trainer, -1
    trainer.add_callback(begins)
    trainer.train()
    assert_same(dense, begins.seen[0])
    assert trainer.state.global_step == STEPS and verify(trainer.model).ok


@pytest.mark.parametrize(("recipe", "kind"), RUNS[:2] + RUNS[-1:])
def test_another_trainer_after_an_interrupt_begins_from_the_dense_weights_too(recipe, kind, tmp_path):
    interrupt, begins = InterruptAt(5, "on_substep_end"), Begins()
    first = make_trainer(tmp_path, eventful(recipe), kind, callbacks=[interrupt], save_strategy="no")
    with pytest.raises(KeyboardInterrupt):
        first.train()
    dense = trained_weights(first)
    begins.trainer = make_trainer(tmp_path, eventful(recipe), kind, model=first.model, save_strategy="no")
    begins.trainer.add_callback(begins)
    begins.trainer.train()
    assert_same(dense, begins.seen[0])
    assert engine_of(first).finished and verify(first.model).ok


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
                ran_out.append(trained_weights(trainer))
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


@pytest.mark.parametrize(("recipe", "kind"), [*((name, "NxMTrainer") for name in FEW[1:]), ("admm", "NxMCallback")])
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


@pytest.mark.parametrize("recipe", ["dense", *FEW])
def test_training_twice_begins_the_second_time_from_the_model_that_was_deployed(recipe, tmp_path):
    trainer = make_trainer(tmp_path, eventful(recipe), save_strategy="no")
    trainer.train()
    deployed = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    begins = Begins()
    begins.trainer = trainer
    if recipe != "dense":
        trainer.add_callback(begins)
    trainer.train()
    assert trainer.state.global_step == STEPS
    for name, weight in (begins.seen or [{}])[0].items():
        assert torch.equal(weight, deployed[f"{name}.weight"])
    if recipe != "dense":
        assert verify(trainer.model).ok


@pytest.mark.parametrize("recipe", SPARSE)
def test_an_error_inside_evaluate_leaves_the_weights_that_are_trained(recipe, tmp_path):
    """Caught by the user's own loop or not, training can go on, and a save deploys what it would have deployed."""
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
