"""States of another run, of another step, or of a plain Trainer are errors that say which."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import Trainer

from nxm_hf import NxMConfig, verify
from nxm_hf.layers.plan import Plan
from nxm_hf.storage.checkpoints import complete_checkpoint
from nxm_hf.storage.same_model import check_same_model, check_same_teacher, fingerprints
from nxm_hf.storage.state_file import STATE_FILE
from tests.support.models import make_bert
from tests.support.saving import make_resuming_trainer
from tests.support.toy_training import Toy
from tests.support.training import KINDS, ROWS, SaveAt, eventful, make_trainer


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def another_run(out: Path, scratch: Path) -> None:
    make_trainer(scratch, eventful("admm"), begin=9, callbacks=[SaveAt(4)]).train()
    shutil.copy(scratch / "checkpoint-4" / STATE_FILE, out / "checkpoint-4")


def another_step(out: Path, scratch: Path) -> None:
    shutil.copy(out / "checkpoint-2" / STATE_FILE, out / "checkpoint-4")


def not_ours(out: Path, scratch: Path) -> None:
    shutil.copy(out / "checkpoint-4" / "model.safetensors", out / "checkpoint-4" / STATE_FILE)


def newer(out: Path, scratch: Path) -> None:
    path = out / "checkpoint-4" / STATE_FILE
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["nxm_state"])
    save_file(load_file(path), path, metadata={"nxm_state": json.dumps({**header, "format": 2, "of": "the future"})})


def flipped_state(out: Path, scratch: Path) -> None:
    flip(out / "checkpoint-4" / STATE_FILE, -5)


def flipped_target(out: Path, scratch: Path) -> None:
    path = out / "checkpoint-4" / "model.safetensors"
    weights = load_file(path)
    weights["bert.encoder.layer.0.output.dense.weight"][3, 4] += 1
    save_file(weights, path, metadata={"format": "pt"})


def flipped_other(out: Path, scratch: Path) -> None:
    path = out / "checkpoint-4" / "model.safetensors"
    weights = load_file(path)
    weights["classifier.bias"][0] += 1
    save_file(weights, path, metadata={"format": "pt"})


MIXED = (
    "are not those that .*checkpoint-4 was saved with: its targets and others differ.*Resume from another checkpoint"
)
DAMAGES = [
    (another_run, MIXED),
    (another_step, MIXED),
    (not_ours, "was not written by nxm_hf. Resume from a checkpoint of NxMTrainer or NxMCallback"),
    (newer, "has format 2; this nxm_hf reads 1. Install a newer nxm-hf"),
    (flipped_state, "is damaged: its fingerprint differs. Resume from another checkpoint"),
    (flipped_target, "its targets differ"),
    (flipped_other, "its others differ"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("damage", "says"), DAMAGES, ids=[damage.__name__ for damage, *_ in DAMAGES])
def test_a_foreign_state_is_an_error_that_says_which_and_what_to_do(damage, says, kind, out, tmp_path):
    damage(out, tmp_path / "scratch")
    complete_checkpoint(out / "checkpoint-4")  # with a manifest that fits, so that the other checks are asked
    trainer = make_resuming_trainer(out, kind)
    with pytest.raises(ValueError, match=says):
        trainer.train(resume_from_checkpoint=str(out / "checkpoint-4"))


OTHER_CONFIGS = [
    (eventful("ste"), "of recipe 'admm' and this run has 'ste'.*Resume with recipe='admm'"),
    (
        eventful("admm", pattern="1:4"),
        "of pattern '2:4' and this run has '1:4'.*Resume with pattern='2:4'",
    ),
    (eventful("admm", exclude=["ffn"]), "of other layers than this run: see .*Check include and exclude"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("sparsity", "says"), OTHER_CONFIGS, ids=["recipe", "pattern", "layers"])
def test_a_state_of_another_config_is_an_error_that_says_which(sparsity, says, kind, out):
    trainer = make_resuming_trainer(out, kind, sparsity=sparsity)
    with pytest.raises(ValueError, match=says):
        trainer.train(resume_from_checkpoint=str(out / "checkpoint-4"))


def test_other_settings_are_a_warning_that_says_which(out, caplog):
    sparsity = NxMConfig("admm", settings={"steps": 3}, warmup=0.25, settle=0.25)
    make_resuming_trainer(out, sparsity=sparsity).train(resume_from_checkpoint=str(out / "checkpoint-4"))
    ours = [record.message for record in caplog.records if "Resuming with" in record.message]
    assert ours == ["Resuming with settings={'steps': 3}; the state was made with {'steps': 2}."]


@pytest.mark.parametrize(
    ("made", "given"),
    [({"rho": 0.01}, {}), ({}, {"rho": 0.01}), ({"penalty": "decoupled"}, {}), ({}, {"penalty": "decoupled"})],
)
def test_admm_goes_on_from_a_state_of_any_other_settings(made, given, tmp_path):
    """A strength that is to be measured, and was not when the state was made, is measured at the next gradient."""
    make_trainer(tmp_path, NxMConfig("admm", settings={**made, "steps": 2}), callbacks=[SaveAt(4)]).train()
    trainer = make_resuming_trainer(tmp_path, sparsity=NxMConfig("admm", settings={**given, "steps": 2}))
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert trainer.state.global_step == 8 and verify(trainer.model).ok


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("only_model", (False, True))
def test_the_checkpoint_of_a_plain_trainer_and_a_model_alone_are_errors(only_model, kind, tmp_path):
    """Pitfall 3: neither resumes as if nothing had been pruned."""
    words = dict(max_steps=4, callbacks=[SaveAt(4)])
    if only_model:
        trainer = make_trainer(tmp_path, eventful("admm"), kind, save_only_model=True, **words)
        parts = "optimizer.pt, scheduler.pt, rng_state.pth, "
    else:
        arguments = make_resuming_trainer(tmp_path).args
        trainer = Trainer(make_bert(), arguments, train_dataset=ROWS, callbacks=[SaveAt(4)])
        parts = ""
    trainer.train()
    folder = tmp_path / "checkpoint-4"
    assert not (folder / STATE_FILE).exists()
    says = (
        f"is not a complete checkpoint: {parts}.*has no {STATE_FILE}: a plain Trainer wrote it, or save_only_model=True"
    )
    if kind == "NxMCallback":
        says = f"has no {STATE_FILE}.*or save_only_model=True write it\\? Load its weights with from_pretrained"
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        make_resuming_trainer(tmp_path, kind).train(resume_from_checkpoint=str(folder))


TEACHER = {"source": "a", "weights": "11", "distillation": {"alpha": 0.5}}


@pytest.mark.parametrize(
    ("saved", "current", "says"),
    [
        (None, None, None),
        (TEACHER, TEACHER, None),
        (TEACHER, {**TEACHER, "source": "moved"}, None),
        (TEACHER, {**TEACHER, "weights": "22"}, r"with the teacher a, and this .* has the teacher a, whose weights di"),
        (TEACHER, None, r"with the teacher a, and this training has no teacher\. Resume with .*, teacher='a', or load"),
        (None, TEACHER, r"with no teacher, and this training has the teacher a\. Leave teacher= out, or load"),
    ],
)
def test_a_training_goes_on_with_the_teacher_that_it_began_with(saved, current, says, caplog):
    headers = [{"teacher": saved}, {}] if saved is None else [{"teacher": saved}]
    for header in headers:
        if says is None:
            check_same_teacher("folder", header, current)
            continue
        with pytest.raises(ValueError, match=rf"^folder was trained {says}"):
            check_same_teacher("folder", header, current)
    assert not caplog.messages


def test_another_distillation_by_the_same_teacher_is_a_warning(caplog):
    check_same_teacher("folder", {"teacher": TEACHER}, {**TEACHER, "distillation": {"alpha": 1.0}})
    says = "Resuming with distillation={'alpha': 1.0}; the state was made with {'alpha': 0.5}."
    assert caplog.messages == [says]


def test_fingerprints_tell_pruned_weights_from_all_others_of_the_module_that_is_trained():
    model = torch.nn.Sequential(Toy())
    plan = replace(Plan.of(model[0], NxMConfig("ste")), whole=model)
    before, header = fingerprints(plan), {"layers": plan.layers}
    check_same_model("folder", {**header, **before}, plan)
    parts = {"targets": plan.targets[0].layer.weight, "others": model[0].blocks[0].up.bias}
    for part, parameter in parts.items():
        with torch.no_grad():
            parameter.view(-1)[0] += 1
        now = fingerprints(plan)
        assert {name for name in now if now[name] != before[name]} == {part}
        with pytest.raises(ValueError, match=rf"that folder was saved with: its {part} differ\."):
            check_same_model("folder", {**header, **before}, plan)
        check_same_model("folder", {"layers": {}, **before}, plan)  # other layers are another error
        before = now
