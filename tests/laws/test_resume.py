"""Resuming: a training that was broken off and resumed is the unbroken one, bit for bit."""

import functools
import shutil
from pathlib import Path

import pytest
import torch

import nxm_hf
from nxm_hf import verify
from nxm_hf.engine.optimizer_state import unwrapped
from nxm_hf.patterns import NM
from nxm_hf.solvers import base
from tests.support.grids import FEW, OTHERS
from tests.support.training import (
    KINDS,
    SHORT,
    STEPS,
    InterruptAt,
    SaveAt,
    assert_same,
    assert_same_end,
    contents,
    eventful,
    make_trainer,
)

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
        steps = (3, 8) if optimizer else range(1, STEPS + 1) if recipe in FEW else (2, 4, 5, 8)
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


# The four recipes of FEW, one for each kind of state, are resumed at every step. Others are resumed where the warm-up
# has just ended and a mask has just been made (2), and in an epoch's and the recipe's middle, between two events (5).
AT_ANY_STEP = [(name, at) for name in FEW for at in range(1, STEPS)] + [(name, at) for name in OTHERS for at in (2, 5)]


@pytest.mark.parametrize(("recipe", "at"), AT_ANY_STEP)
def test_a_training_resumed_at_any_step_is_the_unbroken_one(recipe, at, unbroken, tmp_path):
    """Pitfall 3: before, at and after the change of a phase, a refresh of the mask and an update of ADMM."""
    whole = unbroken(recipe)
    assert_same_end(whole, resume(whole, at, tmp_path, recipe), at)


@pytest.mark.parametrize("at", [2, 5])
@pytest.mark.parametrize("recipe", FEW)
def test_a_plain_trainer_with_the_callback_resumes_the_unbroken_training(recipe, at, unbroken, tmp_path):
    """That the callback writes the checkpoints of NxMTrainer is tested with every recipe in test_callback."""
    whole = unbroken(recipe, "NxMCallback")
    assert_same_end(whole, resume(whole, at, tmp_path, recipe, "NxMCallback"), at)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("recipe", FEW)
def test_a_training_with_any_optimizer_resumes_as_the_unbroken_one(recipe, optimizer, unbroken, tmp_path):
    """Every recipe with AdamW and SGD in test_engine_state."""
    if optimizer == "Adafactor" and eventful(recipe).method(NM(2, 4)).edits_moments:
        pytest.skip(
            "Adafactor keeps no moments of single weights, which this recipe edits; test_optimizer_state has the error"
        )
    whole = unbroken(recipe, optimizer=optimizer)
    assert_same_end(whole, resume(whole, 3, tmp_path, recipe, **OPTIMIZERS[optimizer]), 3)


@pytest.mark.parametrize("recipe", FEW)
def test_a_training_resumes_with_another_optimizer_of_the_same_bits(recipe, monkeypatch, tmp_path):
    """NxMTrainer trains with `nxm_hf.AdamW`, which masks within its step. With torch's, the engine masks."""
    monkeypatch.setattr(base, "MIN_NUMEL", 0)  # kernels for tiny weights, too
    theirs = {"optimizer_cls_and_kwargs": (torch.optim.AdamW, {"lr": SHORT["learning_rate"], "fused": True})}
    optimizers = {nxm_hf.AdamW: {"optim": "adamw_torch_fused"}, torch.optim.AdamW: theirs}
    wholes = []
    for kind, changes in optimizers.items():
        whole = make_trainer(tmp_path / kind.__module__, eventful(recipe), callbacks=[SaveAt(3, STEPS)], **changes)
        whole.train()
        assert type(unwrapped(whole.optimizer)) is kind
        wholes.append(whole)
    assert_same_end(*wholes, STEPS)
    for whole, changes in zip(wholes, reversed(optimizers.values()), strict=True):
        assert_same_end(whole, resume(whole, 3, tmp_path / "again", recipe, **changes), 3)


def test_a_warmup_a_refresh_and_a_settled_mask_all_happen_in_the_short_training(unbroken):
    """What the laws of this file stand on."""
    phases = [record["nxm/phase"] for record in unbroken("sr-ste").state.log_history if "loss" in record]
    assert phases == [1, 1, 2, 2]  # at steps 2, 4, 6, 8
    assert contents(checkpoint_of(unbroken("sr-ste"), 1))["nxm_state"].keys() != (
        contents(checkpoint_of(unbroken("sr-ste"), 3))["nxm_state"].keys()
    )
    updates = [
        int(next(v for k, v in contents(checkpoint_of(unbroken("admm"), at))["nxm_state"].items() if "/updates" in k))
        for at in (2, 3, 4, 5)
    ]
    assert updates == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("recipe", "kind"), [*((name, "NxMTrainer") for name in FEW), ("sr-ste", "NxMCallback"), ("admm", "NxMCallback")]
)
def test_after_an_interrupt_the_same_trainer_resumes_the_unbroken_training(recipe, kind, unbroken, tmp_path):
    interrupt = InterruptAt(5, "on_substep_end")
    trainer = make_trainer(tmp_path, eventful(recipe), kind, callbacks=[interrupt, SaveAt(4, 8)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    interrupt.step = -1
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert_same_end(unbroken(recipe, kind), trainer, 4)


# -- where a checkpoint lies, and what may differ ----------------------------------------------------------------------


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


def test_the_callback_finds_the_checkpoint_that_a_script_names_among_its_arguments(unbroken, tmp_path):
    whole = unbroken("admm", "NxMCallback")
    named = str(checkpoint_of(whole, 3))
    trainer = make_trainer(tmp_path, eventful("admm"), "NxMCallback", begin=5, resume_from_checkpoint=named)
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    assert_same_end(whole, trainer, 3)


@pytest.mark.parametrize("argument", [None, "True"])
def test_the_callback_asks_for_resume_from_when_the_checkpoint_is_elsewhere(argument, unbroken, tmp_path):
    trainer = make_trainer(tmp_path, eventful("admm"), "NxMCallback", resume_from_checkpoint=argument)
    with pytest.raises(FileNotFoundError, match=r"Write NxMCallback\(\.\.\., resume_from=PATH\)"):
        trainer.train(resume_from_checkpoint=str(checkpoint_of(unbroken("admm", "NxMCallback"), 3)))


def test_resuming_without_a_checkpoint_says_what_to_do(tmp_path):
    trainer = make_trainer(tmp_path, "ste")
    with pytest.raises(ValueError, match=r"^No valid checkpoint found in .*\. Train without resume"):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("recipe", "at", "steps"),
    [(name, *change) for name in FEW for change in [(1, 12), (4, 7), (6, 12)]]
    + [(name, 4, 7) for name in OTHERS if name != "dense"],
)
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


@pytest.mark.parametrize("manifest", [True, False], ids=["with manifest", "of an older version"])
def test_the_callback_refuses_a_torn_state_and_never_begins_anew(manifest, tmp_path):
    """Pitfall 3: a training that goes on without its state would be dense, and say nothing."""
    words = dict(max_steps=4, save_steps=2, gradient_accumulation_steps=1)
    make_trainer(tmp_path, eventful("admm"), "NxMCallback", **words).train()
    state = tmp_path / "checkpoint-2" / "nxm_state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    if not manifest:
        (state.parent / "nxm_manifest.json").unlink()
    trainer = make_trainer(tmp_path, eventful("admm"), "NxMCallback", **words)
    with pytest.raises(ValueError, match=r"checkpoint-2 cannot be resumed from: .*nxm_state\.safetensors"):
        trainer.train(resume_from_checkpoint=str(state.parent))
