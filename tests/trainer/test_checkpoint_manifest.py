"""Manifests of checkpoints: there before older ones are deleted, and the newest by step is the newest by time."""

import copy
import os
import pickle

import pytest
from transformers import TrainerCallback

from nxm_hf.storage import state_file
from nxm_hf.storage.checkpoints import missing_parts
from nxm_hf.storage.manifest import changed_files, read_manifest, remove_manifest
from tests.support.saving import make_resuming_trainer, step_of
from tests.support.training import KINDS, SaveAt, eventful, make_trainer


class ClockSetBack(TrainerCallback):
    """Moves the times of all checkpoints into the future, as if the clock had been set back."""

    def on_step_begin(self, args, state, control, **kwargs):
        for path in os.scandir(args.output_dir):
            if path.is_dir():
                os.utime(path, (path.stat().st_atime, path.stat().st_mtime + 7200))


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_of_a_checkpoint_is_recorded(kind, tmp_path):
    make_trainer(tmp_path, eventful("admm"), kind, callbacks=[SaveAt(2, 4)], max_steps=4).train()
    for step in (2, 4):
        folder = tmp_path / f"checkpoint-{step}"
        files = {path.name for path in folder.iterdir()} - {"README.md", "nxm_manifest.json"}
        assert set(read_manifest(folder)) == files and len(files) == 9
        assert changed_files(folder) == {} and missing_parts(folder) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [1, 2])
def test_rotation_deletes_the_oldest_by_step_whatever_the_clock_says(limit, kind, tmp_path):
    make_trainer(
        tmp_path, eventful("ste"), kind, callbacks=[ClockSetBack()], max_steps=5, save_steps=1, save_total_limit=limit
    ).train()
    assert sorted(step_of(path) for path in tmp_path.glob("checkpoint-*")) == [4, 5][-limit:]


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_without_its_manifest_is_torn_and_one_of_an_older_version_is_not(kind, tmp_path, caplog):
    make_trainer(tmp_path, eventful("admm"), kind, callbacks=[SaveAt(4)], max_steps=4).train()
    folder = tmp_path / "checkpoint-4"
    remove_manifest(folder)
    assert missing_parts(folder) == ["nxm_manifest.json is missing"]
    with pytest.raises(ValueError, match=r"nxm_manifest\.json is missing\. Resume"):
        make_resuming_trainer(tmp_path, kind).train(resume_from_checkpoint=str(folder))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["rng_state.pth", "optimizer.pt"])
def test_a_flipped_bit_in_a_file_of_the_trainer_is_refused(name, kind, tmp_path):
    """The callback is asked after Trainer has loaded most files, but before the first step."""
    make_trainer(tmp_path, eventful("admm"), kind, callbacks=[SaveAt(4)], max_steps=4).train()
    path = tmp_path / "checkpoint-4" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    trainer = make_resuming_trainer(tmp_path, kind)
    with pytest.raises(ValueError, match=rf"{name} has changed since it was saved\. Resume "):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert trainer.state.global_step in (0, 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [9, -1], ids=["in the header", "in a tensor"])
def test_a_bit_of_the_state_that_flips_on_its_way_to_the_disk_is_an_error(place, kind, tmp_path, monkeypatch):
    sync = state_file.sync

    def lose(path):
        if path.is_file():
            content = bytearray(path.read_bytes())
            content[place] ^= 1
            path.write_bytes(content)
        sync(path)

    monkeypatch.setattr(state_file, "sync", lose)
    trainer = make_trainer(tmp_path, eventful("admm"), kind, callbacks=[SaveAt(2)], max_steps=4)
    with pytest.raises(
        RuntimeError, match=r"nxm_state\.safetensors in .*checkpoint-2 is not what was written; the disk"
    ):
        trainer.train()
    assert read_manifest(tmp_path / "checkpoint-2") is None and missing_parts(tmp_path / "checkpoint-2")


def test_the_best_checkpoint_is_not_loaded_if_it_has_changed(tmp_path):
    class Damage(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            path = tmp_path / f"checkpoint-{state.global_step}" / "model.safetensors"
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)

    trainer = make_trainer(
        tmp_path,
        eventful("ste"),
        callbacks=[Damage()],
        max_steps=2,
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
    )
    with pytest.raises(ValueError, match=r"model\.safetensors has changed since it was saved\. It was the best"):
        trainer.train()


def test_the_state_of_a_trainer_can_be_copied_and_pickled_and_saved_elsewhere(tmp_path):
    trainer = make_trainer(tmp_path, eventful("ste"), save_strategy="no")
    trainer.train()
    for state in (copy.deepcopy(trainer.state), pickle.loads(pickle.dumps(trainer.state))):
        state.save_to_json(str(tmp_path / "state.json"))
        assert type(state).load_from_json(str(tmp_path / "state.json")) == trainer.state
