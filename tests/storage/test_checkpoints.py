"""Checkpoints: wherever a process is killed a whole one is left, and what is not whole is neither used nor hidden."""

import os
import re
import shutil
import threading
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import TrainerCallback

from nxm_hf import verify
from nxm_hf.storage.checkpoints import (
    HAS_MANIFEST,
    LAST_WRITTEN,
    PROCESSES,
    begin_checkpoint,
    checkpoint_to_resume,
    complete_checkpoint,
    drop_unsaved,
    is_checkpoint,
    missing_parts,
    newest_complete,
)
from nxm_hf.storage.manifest import MANIFEST_FILE, write_manifest
from nxm_hf.storage.state_file import STATE_FILE, read_state, write_state
from tests.support.saving import make_resuming_trainer, step_of
from tests.support.training import KINDS, SaveAt, assert_same, contents, engine_of, eventful, make_trainer, records

NEEDED = {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
NEEDED |= {STATE_FILE, "nxm_config.json", "config.json", MANIFEST_FILE}
SPARE = {"README.md", "training_args.bin"}


# -- torn, cut and missing files ---------------------------------------------------------------------------------------


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
    assert step_of(newest_complete(out)) == 2
    (message,) = (record.message for record in caplog.records if record.name == "nxm_hf")
    assert "checkpoint-2; skipped, because incomplete or changed: checkpoint-4 (" in message and name in message
    with pytest.raises(ValueError, match=f"checkpoint-4 is not a complete checkpoint: .*{re.escape(name)}.*") as error:
        make_resuming_trainer(out).train(resume_from_checkpoint=str(out / "checkpoint-4"))
    assert "Resume with resume_from_checkpoint=True, which takes the newest complete one." in str(error.value)
    assert ".. " not in str(error.value)


def test_a_checkpoint_without_the_random_state_of_a_process_is_not_complete(out):
    """A process that was killed in the save leaves none; a run without it would draw other numbers."""
    folder = out / "checkpoint-4"
    header, tensors = read_state(folder)
    assert header[PROCESSES] == 1
    write_state(folder, {**header, PROCESSES: 3}, tensors)
    write_manifest(folder)
    assert missing_parts(folder) == ["the random states of 2 of 3 processes are missing"]
    for rank in (1, 2):
        shutil.copy(folder / "rng_state.pth", folder / f"rng_state_{rank}.pth")
    assert missing_parts(folder) == []
    write_state(folder, {**header, PROCESSES: "a later version may write this"}, tensors)
    write_manifest(folder)
    assert missing_parts(folder) == []


@pytest.mark.parametrize("how", ("half", "zero"))
def test_a_torn_state_is_an_error_for_the_callback_too_and_no_training_begins(how, out):
    """Pitfall 3: to go on as if there were no state would be a silently dense training."""
    cut(out / "checkpoint-4" / STATE_FILE, how)
    trainer = make_resuming_trainer(out, "NxMCallback")
    says = rf"checkpoint-4 cannot be resumed from: {re.escape(STATE_FILE)} has \d.* bytes instead of .*older checkpoint"
    with pytest.raises(ValueError, match=says):
        trainer.train(resume_from_checkpoint=str(out / "checkpoint-4"))
    assert engine_of(trainer) is None and trainer.state.global_step == 4


@pytest.mark.parametrize("how", ("half", "zero", "deleted"))
def test_files_that_resuming_does_not_need_may_be_damaged(how, out):
    for name in SPARE:
        cut(out / "checkpoint-4" / name, how)
    assert missing_parts(out / "checkpoint-4") == []


def test_true_resumes_from_the_newest_whole_checkpoint(out):
    cut(out / "checkpoint-4" / "model.safetensors", "half")
    trainer = make_resuming_trainer(out)
    trainer.train(resume_from_checkpoint=True)
    reference = make_trainer(out / "reference", eventful("admm"), callbacks=[SaveAt(8)])
    reference.train()
    assert_same(contents(out / "reference" / "checkpoint-8"), contents(out / "checkpoint-8"))


def test_when_no_checkpoint_is_whole_the_error_names_them_all(out):
    cut(out / "checkpoint-4" / "scheduler.pt", "zero")
    cut(out / "checkpoint-2" / "optimizer.pt", "deleted")
    with pytest.raises(
        ValueError,
        match=r"checkpoint-4 \(scheduler.pt has .*\); checkpoint-2 \(optimizer.pt is missing\)\. Train without",
    ):
        make_resuming_trainer(out).train(resume_from_checkpoint=True)


def test_the_newest_is_found_by_number_and_among_checkpoints_only(out, caplog):
    os.rename(out / "checkpoint-4", out / "checkpoint-10")
    shutil.copytree(out / "checkpoint-2", out / "checkpoint-best")
    (out / "checkpoint-11").write_text("a file")
    assert step_of(newest_complete(out)) == 10 and not caplog.messages, "a file was not passed over"


def test_a_directory_that_is_not_there_or_has_no_checkpoints_is_an_error_that_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"valid checkpoint at .*no\.such: there is no such directory\. Write resume"):
        checkpoint_to_resume(str(tmp_path / "no.such"), tmp_path)
    for which, folder in ((True, tmp_path), (True, tmp_path / "no.such")):
        with pytest.raises(ValueError, match=rf"found in output directory \({folder}\)\. Train without resume_from"):
            checkpoint_to_resume(which, folder)


def test_a_checkpoint_is_told_by_its_whole_name():
    assert is_checkpoint("out/checkpoint-12") and is_checkpoint(Path("checkpoint-0"))
    for other in (None, "", "checkpoint-", "checkpoint-1/model", "checkpoint-best", "my-checkpoint-1", "checkpoint-1b"):
        assert not is_checkpoint(other), other


def test_a_checkpoint_that_is_written_over_is_not_complete(out):
    for _ in range(2):
        begin_checkpoint(out / "checkpoint-4")
        assert not {LAST_WRITTEN, MANIFEST_FILE} & {*os.listdir(out / "checkpoint-4")}
    assert step_of(newest_complete(out)) == 2


def test_files_of_a_checkpoint_that_was_not_saved_are_removed(tmp_path):
    for others in ((), ("model.safetensors",)):
        (tmp_path / "checkpoint-1").mkdir()
        for name in (STATE_FILE, "nxm_config.json", "README.md", *others):
            (tmp_path / "checkpoint-1" / name).write_text("")
        for _ in range(2):
            drop_unsaved(tmp_path / "checkpoint-1")
        assert [path.name for path in tmp_path.rglob("*")] == [*(["checkpoint-1"] * bool(others)), *others]


def test_a_checkpoint_is_the_newest_by_time_even_if_the_clock_was_set_back(tmp_path):
    """Trainer deletes the oldest by time."""
    old, new, future = tmp_path / "checkpoint-8", tmp_path / "checkpoint-9", 2**33 * 10**9
    old.mkdir(), new.mkdir(), (tmp_path / "checkpoint-7").mkdir()
    os.utime(tmp_path / "checkpoint-7", ns=(10**9, 10**9))
    for name in ("checkpoint-10", "model"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, ns=(future + 10**12, future + 10**12))  # no checkpoints
    os.utime(old, ns=(future, future))
    complete_checkpoint(new)
    assert new.stat().st_mtime_ns == future + 2 * 10**9 and (new / MANIFEST_FILE).exists()
    now = (new / MANIFEST_FILE).stat().st_mtime_ns
    os.utime(old, ns=(now - 10**11, now - 10**11))
    complete_checkpoint(new, [])
    assert now <= new.stat().st_mtime_ns < now + 10**11
    old.rmdir(), (tmp_path / "checkpoint-7").rmdir()
    complete_checkpoint(new)
    assert now <= new.stat().st_mtime_ns < now + 10**11


def test_a_checkpoint_of_which_a_file_has_other_bytes_than_were_written_stays_incomplete(out):
    folder = out / "checkpoint-4"
    begin_checkpoint(folder)
    with pytest.raises(RuntimeError, match=re.escape(STATE_FILE)):
        complete_checkpoint(folder, expected={STATE_FILE: "another digest"})
    assert not (folder / MANIFEST_FILE).exists() and step_of(newest_complete(out)) == 2


def test_a_checkpoint_of_a_plain_module_has_no_config_and_one_by_fsdp_other_names(out):
    folder = out / "checkpoint-4"
    (folder / MANIFEST_FILE).unlink()
    header, tensors = read_state(folder)
    assert missing_parts(folder) == [f"{MANIFEST_FILE} is missing"] and header[HAS_MANIFEST]
    del header[HAS_MANIFEST], header[PROCESSES]
    write_state(folder, header, tensors)
    assert missing_parts(folder) == []
    (folder / "config.json").unlink()
    assert missing_parts(folder) == []
    assert missing_parts(folder, by_fsdp=True) == ["pytorch_model_fsdp.bin", "optimizer.bin"]
    for name in ("pytorch_model_fsdp.bin", "optimizer.bin"):
        shutil.copy(folder / "optimizer.pt", folder / name)
    (folder / "optimizer.pt").unlink()
    assert missing_parts(folder, by_fsdp=True) == [] and missing_parts(folder) == ["optimizer.pt"]
    (folder / "rng_state.pth").write_text("torn")
    (folder / LAST_WRITTEN).write_text("null")
    os.mkfifo(folder / "optimizer.pt")
    assert missing_parts(folder) == ["optimizer.pt", "rng_state.pth", LAST_WRITTEN]


def without_manifest(folder: Path) -> Path:
    """Make a checkpoint one that has no manifest and needs none, as older versions wrote them."""
    header, tensors = read_state(folder)
    write_state(folder, {**header, HAS_MANIFEST: False}, tensors)
    (folder / MANIFEST_FILE).unlink()
    assert missing_parts(folder) == []
    return folder


@pytest.mark.parametrize("name", sorted(NEEDED - {MANIFEST_FILE}))
def test_a_damaged_file_is_named_without_a_manifest_too(name, out):
    folder = without_manifest(out / "checkpoint-4")
    content = (folder / name).read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"[" * 100_000, b"\xff" * 100):
        (folder / name).write_bytes(damaged)
        missing = missing_parts(folder)
        assert missing and all(name in each and "\n" not in each for each in missing), damaged[:9]
    (folder / name).unlink()
    assert any(name in each for each in missing_parts(folder)) == (name != "config.json"), "a module may have none"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
@pytest.mark.parametrize("name", sorted(NEEDED - {MANIFEST_FILE}))
def test_a_pipe_in_the_place_of_a_file_is_named_and_never_opened(name, out):
    """Whoever reads a pipe waits for a writer, and a training that resumes would hang."""
    folder = without_manifest(out / "checkpoint-4")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    writer = threading.Thread(target=(folder / name).write_text, args=("{}",))
    writer.start()
    try:
        missing = missing_parts(folder)
        assert missing and all(name in each for each in missing) and writer.is_alive(), "the pipe was read"
    finally:
        reader = os.open(folder / name, os.O_RDONLY | os.O_NONBLOCK)
        writer.join()
        os.close(reader)


# -- what lies where ---------------------------------------------------------------------------------------------------


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
def test_every_checkpoint_can_be_deployed_as_it_is(kind, tmp_path):
    """Pitfall 2: in the warm-up, the recipe and the settled phase."""
    make_trainer(tmp_path, eventful("admm"), kind).train()
    assert all(verify(tmp_path / f"checkpoint-{step}").ok for step in range(1, 9))


# -- rotation and the best checkpoint ----------------------------------------------------------------------------------


class WholeAfterEverySave(TrainerCallback):
    """Checks, after each save and its rotation, that a whole checkpoint is left, and the best one too."""

    seen = 0

    def on_save(self, args, state, control, **kwargs):
        assert step_of(newest_complete(args.output_dir)) == state.global_step
        assert not missing_parts(state.best_model_checkpoint)
        self.seen += 1


@pytest.mark.parametrize(("recipe", "kind"), [("ste", "NxMTrainer"), ("admm", "NxMTrainer"), ("admm", "NxMCallback")])
def test_the_best_model_at_the_end_is_the_checkpoint_that_was_best(recipe, kind, tmp_path):
    """Pitfall 30: also after a resume, with rotation at every save; and it is sparse."""
    words = dict(eval_strategy="steps", eval_steps=1, save_steps=1, save_total_limit=1, load_best_model_at_end=True)
    words.update(metric_for_best_model="eval_loss", greater_is_better=True)  # so that it is none of the last
    checks = WholeAfterEverySave()
    trainer = make_trainer(tmp_path / "one", eventful(recipe), kind, callbacks=[checks], **words)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert checks.seen == 8 and step_of(best) < 5
    assert {path.name for path in (tmp_path / "one").iterdir()} == {best.name, "nxm_run.json"}
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
