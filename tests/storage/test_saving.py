"""Saving: a broken model is never written, and what is pushed is whole."""

import fnmatch
import shutil
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from transformers import AutoModelForSequenceClassification, Trainer

from nxm_hf import NxMCallback, NxMTrainer, SparsityRecord, verify
from tests.support.models import assert_equal_weights, make_arguments, make_bert
from tests.support.saving import hashes_of, train_two_steps


@pytest.mark.parametrize("target", ["new", "old"])
def test_a_model_that_breaks_its_pattern_is_an_error_before_any_file_changes(target, tmp_path):
    """Pitfall 5: sparsity that got lost after training is found at the save."""
    trainer = train_two_steps(tmp_path / "run")
    if target == "old":
        trainer.save_model(tmp_path / "end")
    before = hashes_of(tmp_path)
    with torch.no_grad():
        trainer.model.bert.encoder.layer[0].output.dense.weight.add_(1e-3)
    with pytest.raises(ValueError, match=r"nothing was written:\n  bert\.encoder\.layer\.0\.output\.dense breaks 2:4"):
        trainer.save_model(tmp_path / "end")
    assert hashes_of(tmp_path) == before and (tmp_path / "end").exists() == (target == "old")


def test_saving_before_training_is_an_error_that_says_to_train(rows, tmp_path):
    trainer = NxMTrainer(make_bert(), make_arguments(tmp_path / "run"), train_dataset=rows, sparsity="admm")
    before = hashes_of(tmp_path)
    with pytest.raises(ValueError, match=r"nothing was written. Call trainer\.train\(\)"):
        trainer.save_model(tmp_path / "end")
    assert hashes_of(tmp_path) == before


# -- the Hub -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def uploads(monkeypatch, tmp_path):
    """The folders that would have been uploaded, as copies of just the files that would have gone."""
    found = []

    def upload(self, *, repo_id, folder_path, ignore_patterns=(), run_as_future=False, path_in_repo=None, **kwargs):
        target = tmp_path / "hub" / str(len(found))
        for path in Path(folder_path).rglob("*"):
            name = path.relative_to(folder_path)
            ignored = any(
                fnmatch.fnmatch(str(name), f"{p}/*") or fnmatch.fnmatch(str(name), p) for p in ignore_patterns
            )
            if path.is_file() and not ignored:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target / name)
        found.append((repo_id, path_in_repo, target))
        done = Future()
        done.set_result(None)
        return done if run_as_future else None

    monkeypatch.setattr(HfApi, "create_repo", lambda *args, **kwargs: SimpleNamespace(repo_id="me/sparse"))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    return found


# transformers shows progress bars again after a push, whatever the environment says.
BARS = pytest.mark.filterwarnings("ignore:Cannot enable progress bars:UserWarning")


def _check_upload(folder, density=0.5):
    """What a stranger needs of a pushed folder."""
    assert verify(folder).ok and verify(folder).density == density
    AutoModelForSequenceClassification.from_pretrained(folder)
    assert SparsityRecord.from_pretrained(folder).density == density
    card = ModelCard.load(folder / "README.md")
    assert card.data.tags.count("nxm-hf") == 1
    assert card.text.count("## Sparsity") == 1
    assert (folder / "nxm_config.json").is_file()
    assert not list(folder.rglob("nxm_state*")) and not list(folder.rglob(".nxm_state*"))


def test_what_is_pushed_at_the_end_is_whole_and_our_section_stands_in_it_once(tmp_path, uploads):
    trainer = train_two_steps(tmp_path / "run", sparsity="admm", save_strategy="steps", save_steps=1)
    trainer.push_to_hub()
    trainer.push_to_hub(tags="mine")
    assert [(repo, place) for repo, place, _ in uploads] == [("me/sparse", None)] * 2
    for _, _, folder in uploads:
        _check_upload(folder)
        again = AutoModelForSequenceClassification.from_pretrained(folder)
        assert_equal_weights(again, trainer.model)
    assert "mine" in ModelCard.load(uploads[1][2] / "README.md").data.tags


@BARS
@pytest.mark.parametrize("recipe", ["admm", "ste"])
def test_what_is_pushed_in_mid_training_is_whole_too(recipe, rows, tmp_path, uploads):
    """The Trainer copies to the Hub's folder only files that it knows; the others must come from us."""
    arguments = make_arguments(tmp_path / "run", max_steps=4, save_steps=2, push_to_hub=True, hub_always_push=True)
    trainer = NxMTrainer(make_bert(), arguments, train_dataset=rows, sparsity=recipe)
    trainer.train()
    assert len(uploads) == 2
    for step, (_, _, folder) in zip((2, 4), uploads, strict=True):
        _check_upload(folder)
        checkpoint = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / f"checkpoint-{step}")
        assert_equal_weights(AutoModelForSequenceClassification.from_pretrained(folder), checkpoint)
    trainer.push_to_hub()
    _check_upload(uploads[-1][2])


def test_a_broken_model_is_not_pushed_and_no_file_changes(tmp_path, uploads):
    trainer = train_two_steps(tmp_path / "run")
    trainer.save_model()
    before = hashes_of(tmp_path)
    with torch.no_grad():
        trainer.model.bert.encoder.layer[0].output.dense.weight.add_(1e-3)
    with pytest.raises(ValueError, match="nothing was written"):
        trainer.push_to_hub()
    assert hashes_of(tmp_path) == before and not uploads


@BARS
def test_a_plain_trainer_with_our_callback_pushes_whole_folders_too(rows, tmp_path, uploads):
    arguments = make_arguments(tmp_path / "run", max_steps=4, save_steps=2, push_to_hub=True, hub_always_push=True)
    trainer = Trainer(make_bert(), arguments, train_dataset=rows, callbacks=[NxMCallback("admm")])
    trainer.train()
    assert len(uploads) == 2
    for _, _, folder in uploads:
        _check_upload(folder)
    trainer.push_to_hub()
    assert verify(uploads[-1][2]).ok and "nxm-hf" in ModelCard.load(uploads[-1][2] / "README.md").data.tags
    assert (uploads[-1][2] / "nxm_config.json").is_file()
