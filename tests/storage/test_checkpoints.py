"""Checkpoints: wherever a process is killed a whole one is left, and what is not whole is neither used nor hidden."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback

from nxm_hf import NxMConfig, verify
from nxm_hf.storage.checkpoints import missing_parts, newest_complete
from nxm_hf.storage.state_file import STATE_FILE, fingerprint, read_state
from tests.support.models import make_bert
from tests.support.processes import command, environment
from tests.support.processes.killed_training import ARGUMENTS
from tests.support.training import ROWS, SaveAt, assert_same, contents, eventful, make_trainer, records

KINDS = ("NxMTrainer", "NxMCallback")
NEEDED = {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
NEEDED |= {STATE_FILE, "nxm_config.json", "config.json"}
SPARE = {"README.md", "training_args.bin"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with two checkpoints of a training that ended at step 4."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = make_trainer(folder, eventful("admm"), callbacks=[SaveAt(2, 4)])
    trainer.train()
    return folder


@pytest.fixture
def out(whole, tmp_path):
    """A copy of it to damage."""
    return Path(shutil.copytree(whole, tmp_path / "out"))


def resumed(folder, kind="NxMTrainer", recipe="admm", sparsity=None, **changes):
    """A trainer over these checkpoints, yet to be started."""
    return make_trainer(folder, sparsity or eventful(recipe), kind, begin=5, callbacks=[SaveAt(8)], **changes)


def step_of(checkpoint) -> int:
    return int(Path(checkpoint).name.removeprefix("checkpoint-"))


# -- killed at any point of a save --------------------------------------------------------------------------------


def assert_is_whole(checkpoint) -> None:
    """Raise unless all parts of a checkpoint are there, and are of one step."""
    header, tensors = read_state(checkpoint)
    weights = load_file(checkpoint / "model.safetensors")
    targets = {name: weights.pop(f"{name}.weight") for name in header["layers"]}
    assert fingerprint(targets.items()) == header["targets"] and fingerprint(weights.items()) == header["others"]
    assert {name.split("/")[0] for name in tensors} == set(targets)
    assert contents(checkpoint)["global_step"] == header["step"]
    assert verify(checkpoint).ok


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_at_any_file_operation_of_a_save_leaves_a_whole_checkpoint(kind, tmp_path):
    """With save_total_limit=1, where the older checkpoint goes as soon as the newer one is there."""
    done = subprocess.run(
        command("killed_training", "save", tmp_path, kind), env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    killed_at = json.loads(done.stdout.splitlines()[-1])
    print(f"file operations of a save: {json.dumps(killed_at, indent=1)}")
    assert len(killed_at["anew"]) >= 15 and len(killed_at["over"]) >= 15 and len(killed_at["torn"]) == 5
    reference = make_trainer(tmp_path / "reference", eventful("admm"), kind, **ARGUMENTS)
    reference.train()
    for way, points in killed_at.items():
        newest = []
        for number in range(len(points)):
            left = tmp_path / f"{way}-{number}" / "out"
            checkpoint = Path(newest_complete(left))
            if way == "over" and number == 0:
                continue  # nothing had been written over the checkpoint that was there
            assert_is_whole(checkpoint)
            newest.append(step_of(checkpoint))
        assert newest == sorted(newest) and set(newest) <= {2, 4}
        for number in {newest.index(2), newest.index(4) if 4 in newest else 0, len(newest) - 1}:
            left = tmp_path / f"{way}-{number + len(points) - len(newest)}" / "out"
            trainer = make_trainer(left, eventful("admm"), kind, begin=5, **ARGUMENTS)
            trainer.train(resume_from_checkpoint=newest_complete(left))
            assert_same(contents(tmp_path / "reference" / "checkpoint-8"), contents(left / "checkpoint-8"))
            assert [path.name for path in left.iterdir()] == ["checkpoint-8"]
        assert (4 in newest) == (way != "torn")


class WholeAfterEverySave(TrainerCallback):
    """Checks, after each save and its rotation, that a whole checkpoint is left, and the best one too."""

    seen = 0

    def on_save(self, args, state, control, **kwargs):
        assert step_of(newest_complete(args.output_dir)) == state.global_step
        assert not missing_parts(state.best_model_checkpoint)
        self.seen += 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recipe", ["ste", "admm"])
def test_the_best_model_at_the_end_is_the_checkpoint_that_was_best(recipe, kind, tmp_path):
    """Pitfall 30: also after a resume, with rotation at every save; and it is sparse."""
    words = dict(eval_strategy="steps", eval_steps=1, save_steps=1, save_total_limit=1, load_best_model_at_end=True)
    words.update(metric_for_best_model="eval_loss", greater_is_better=True)  # so that it is none of the last
    checks = WholeAfterEverySave()
    trainer = make_trainer(tmp_path / "one", eventful(recipe), kind, callbacks=[checks], **words)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert checks.seen == 8 and step_of(best) < 5
    assert [path.name for path in (tmp_path / "one").iterdir()] == [best.name]
    assert_same(load_file(best / "model.safetensors"), dict(trainer.model.state_dict()))
    assert verify(trainer.model).ok

    class Stop(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 6:
                raise KeyboardInterrupt

    broken = make_trainer(tmp_path / "two", eventful(recipe), kind, callbacks=[Stop()], **words)
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    again = make_trainer(tmp_path / "two", eventful(recipe), kind, begin=5, callbacks=[checks], **words)
    again.train(resume_from_checkpoint=newest_complete(tmp_path / "two"))
    assert checks.seen == 10 and Path(again.state.best_model_checkpoint).name == best.name
    assert_same(dict(trainer.model.state_dict()), dict(again.model.state_dict()))
    assert records(again.state.log_history, 6) == records(trainer.state.log_history, 6)


# -- torn, cut and missing files ----------------------------------------------------------------------------------


def test_a_checkpoint_has_the_files_that_these_tests_damage(whole):
    assert {path.name for path in (whole / "checkpoint-4").iterdir()} == NEEDED | SPARE


def cut(path: Path, how: str) -> None:
    if how == "deleted":
        return path.unlink()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if how == "half" else b"")


@pytest.mark.parametrize("how", ("half", "zero", "deleted"))
@pytest.mark.parametrize("name", sorted(NEEDED))
def test_a_checkpoint_with_a_damaged_file_is_passed_over_and_the_file_named(name, how, out, caplog):
    cut(out / "checkpoint-4" / name, how)
    if (name, how) == ("config.json", "deleted"):
        return  # a model that is not of transformers has none
    assert step_of(newest_complete(out)) == 2
    (message,) = (record.message for record in caplog.records if record.name == "nxm_hf")
    assert "checkpoint-2; passed over, as they are not whole: checkpoint-4 (" in message and name in message
    with pytest.raises(ValueError, match=f"checkpoint-4 is not a whole checkpoint: .*{re.escape(name)}.*") as error:
        resumed(out).train(resume_from_checkpoint=str(out / "checkpoint-4"))
    assert "Resume with resume_from_checkpoint=True, which takes the newest whole one." in str(error.value)
    assert ".. " not in str(error.value)


@pytest.mark.parametrize("how", ("half", "zero", "deleted"))
def test_files_that_resuming_does_not_need_may_be_damaged(how, out):
    for name in SPARE:
        cut(out / "checkpoint-4" / name, how)
    assert missing_parts(out / "checkpoint-4") == []


def test_true_resumes_from_the_newest_whole_checkpoint(out):
    cut(out / "checkpoint-4" / "model.safetensors", "half")
    trainer = resumed(out)
    trainer.train(resume_from_checkpoint=True)
    reference = make_trainer(out / "reference", eventful("admm"), callbacks=[SaveAt(8)])
    reference.train()
    assert_same(contents(out / "reference" / "checkpoint-8"), contents(out / "checkpoint-8"))


def test_when_no_checkpoint_is_whole_the_error_names_them_all(out):
    cut(out / "checkpoint-4" / "scheduler.pt", "zero")
    cut(out / "checkpoint-2" / "optimizer.pt", "deleted")
    with pytest.raises(
        ValueError, match=r"checkpoint-4 \(scheduler.pt\); checkpoint-2 \(optimizer.pt\)\. Train without"
    ):
        resumed(out).train(resume_from_checkpoint=True)


def test_the_newest_is_found_by_number_and_among_checkpoints_only(out):
    os.rename(out / "checkpoint-4", out / "checkpoint-10")
    shutil.copytree(out / "checkpoint-2", out / "checkpoint-best")
    (out / "checkpoint-11").write_text("a file")
    assert step_of(newest_complete(out)) == 10


# -- foreign and mixed states -------------------------------------------------------------------------------------


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
    trainer = resumed(out, kind)
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
    trainer = resumed(out, kind, sparsity=sparsity)
    with pytest.raises(ValueError, match=says):
        trainer.train(resume_from_checkpoint=str(out / "checkpoint-4"))


def test_other_settings_are_a_warning_that_says_which(out, caplog):
    sparsity = NxMConfig("admm", settings={"steps": 3}, warmup=0.25, settle=0.25)
    resumed(out, sparsity=sparsity).train(resume_from_checkpoint=str(out / "checkpoint-4"))
    ours = [record.message for record in caplog.records if "Resuming with" in record.message]
    assert ours == ["Resuming with settings={'steps': 3}; the state was made with {'steps': 2}."]


@pytest.mark.parametrize(
    ("made", "given"),
    [({"rho": 0.01}, {}), ({}, {"rho": 0.01}), ({"penalty": "decoupled"}, {}), ({}, {"penalty": "decoupled"})],
)
def test_admm_goes_on_from_a_state_of_any_other_settings(made, given, tmp_path):
    """A strength that is to be measured, and was not when the state was made, is measured at the next gradient."""
    make_trainer(tmp_path, NxMConfig("admm", settings={**made, "steps": 2}), callbacks=[SaveAt(4)]).train()
    trainer = resumed(tmp_path, sparsity=NxMConfig("admm", settings={**given, "steps": 2}))
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
        arguments = resumed(tmp_path).args
        trainer = Trainer(make_bert(), arguments, train_dataset=ROWS, callbacks=[SaveAt(4)])
        parts = ""
    trainer.train()
    folder = tmp_path / "checkpoint-4"
    assert not (folder / STATE_FILE).exists()
    says = f"is not a whole checkpoint: {parts}.*has no {STATE_FILE}: a plain Trainer wrote it, or save_only_model=True"
    if kind == "NxMCallback":
        says = f"has no {STATE_FILE}.*or save_only_model=True write it\\? Load its weights with from_pretrained"
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        resumed(tmp_path, kind).train(resume_from_checkpoint=str(folder))


# -- what lies where ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_only_checkpoints_hold_a_state_and_no_pickle_is_ours(kind, tmp_path):
    """Pitfall 32."""
    trainer = make_trainer(tmp_path / "out", eventful("admm"), kind, callbacks=[SaveAt(2, 8)])
    trainer.train()
    trainer.save_model()
    trainer.save_model(str(tmp_path / "out" / "checkpoint-99"))  # whatever its name, this is a model
    trainer.save_state()
    trainer.model.save_pretrained(tmp_path / "plain")
    holding = sorted(path.parent.name for path in tmp_path.rglob(f"*{STATE_FILE}*"))
    assert holding == ["checkpoint-2", "checkpoint-8"]
    pickles = {path.name for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".pickle")}
    assert pickles == {"training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"}  # the Trainer's own
    for folder in (tmp_path / "out", tmp_path / "plain", tmp_path / "out" / "checkpoint-99"):
        assert verify(folder).ok


@pytest.mark.parametrize("kind", KINDS)
def test_every_checkpoint_can_be_shipped_as_it_is(kind, tmp_path):
    """Pitfall 2: in the warm-up, the recipe and the settled phase."""
    make_trainer(tmp_path, eventful("admm"), kind).train()
    assert all(verify(tmp_path / f"checkpoint-{step}").ok for step in range(1, 9))
