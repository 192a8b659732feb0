"""Saving: a broken model is never written, and what is pushed is whole."""

import errno
import fnmatch
import os
import shutil
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, Trainer

from nxm_hf import NxMCallback, NxMConfig, NxMTrainer, SparsityRecord, verify
from nxm_hf.layers.plan import Plan
from nxm_hf.packing import keys_in_files
from nxm_hf.storage.manifest import MANIFEST_FILE, changed_files
from nxm_hf.storage.same_model import fingerprints
from nxm_hf.storage.saving import bytes_of, check_written, claimed, copy_beside, written_whole
from nxm_hf.storage.write_errors import WriteError
from nxm_hf.storage.written_weights import other_parameters
from tests.support.model_types import MODEL_TYPES
from tests.support.models import assert_equal_weights, make_arguments, make_bert
from tests.support.saving import hashes_of, train_two_steps
from tests.support.toy_training import Toy


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


@pytest.mark.parametrize("written", ["-0.0", "another number", "another shape"])
def test_a_file_that_differs_in_a_single_bit_is_an_error(written, tmp_path):
    model = train_two_steps(tmp_path / "run").model
    plan, name = Plan.of(model, NxMConfig("asp")), "bert.encoder.layer.1.output.dense.weight"
    model.save_pretrained(tmp_path / "end")
    check_written(tmp_path / "end", plan)
    weights = load_file(tmp_path / "end" / "model.safetensors")
    entry = weights[name].view(-1)[-4:]
    entry[(entry != 0) if written == "another number" else (entry == 0)] *= -1
    if written == "another shape":
        weights[name] = weights[name].T.contiguous()
    save_file(weights, tmp_path / "end" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises((RuntimeError, ValueError), match=r"output\.dense"):
        check_written(tmp_path / "end", plan)


@pytest.mark.parametrize("name", ["bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.output.dense.bias"])
def test_a_parameter_that_is_not_pruned_is_compared_too(name, tmp_path):
    model = make_bert()
    plan = Plan.of(model, NxMConfig("asp"))
    model.save_pretrained(tmp_path)
    check_written(tmp_path, plan, record=True)
    with torch.no_grad():
        model.get_parameter(name).view(-1)[-1] += 1.0
    with pytest.raises(RuntimeError, match=rf"^{name} in .* is not the weight that was saved"):
        check_written(tmp_path, plan, record=True)


@pytest.mark.parametrize("kind", [kind for kind in MODEL_TYPES if kind.name in ("vit", "mixtral")], ids=str)
def test_a_parameter_that_is_saved_under_another_name_is_compared_too(kind, tmp_path):
    model = kind.model(0)
    plan = Plan.of(model, NxMConfig("asp"))
    model.save_pretrained(tmp_path)
    check_written(tmp_path, plan, record=True)
    renamed = {key: name for key, name in keys_in_files(model).items() if key != name}
    others = [
        each for each in other_parameters(model, [target.layer for target in plan.targets]) if each.key in renamed
    ]
    assert others
    weights = load_file(tmp_path / "model.safetensors")
    for each in others:
        weights[renamed[each.key]].view(-1)[-1] += 1.0
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(RuntimeError, match=rf"^{each.name} in .* is not the weight that was saved"):
            check_written(tmp_path, plan)
        weights[renamed[each.key]].copy_(each.weight.detach())


@pytest.mark.parametrize("name", ["bert.embeddings.word_embeddings.weight", "bert.encoder.layer.1.output.dense.weight"])
def test_a_given_state_dict_is_compared_in_place_of_the_models_own_weights(name, tmp_path):
    model = make_bert()
    plan, given = Plan.of(model, NxMConfig("asp")), {key: 2 * value for key, value in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict={**given})
    check_written(tmp_path, plan, given=given)
    with pytest.raises(RuntimeError, match="is not the weight that was saved"):
        check_written(tmp_path, plan)
    given[name] = given[name] + 1
    with pytest.raises(RuntimeError, match=rf"^{name} in .* is not the weight that was saved"):
        check_written(tmp_path, plan, given=given)


@pytest.mark.parametrize("record", [None, False, True])
@pytest.mark.parametrize("kind", ["own weights", "parts", "an adapter"])
def test_a_check_writes_nothing_but_a_manifest_where_that_is_asked_for(kind, record, tmp_path):
    model = make_bert()
    plan = Plan.of(model, NxMConfig("asp"))
    if kind == "an adapter":
        (tmp_path / "adapter_model.safetensors").touch()
    else:
        model.save_pretrained(tmp_path)
    before = hashes_of(tmp_path)
    expected = fingerprints(plan)["targets"] if kind == "parts" else None
    check_written(tmp_path, plan, expected, **({} if record is None else {"record": record}))
    assert hashes_of(tmp_path).keys() - before.keys() == ({MANIFEST_FILE} if record else set())
    assert not record or changed_files(tmp_path) == {}


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_no_model_is_loaded_where_the_files_hold_what_is_in_memory(name, tmp_path, monkeypatch):
    model = next(kind for kind in MODEL_TYPES if kind.name == name).model(0)
    plan = Plan.of(model, NxMConfig("asp"))
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(type(model), "from_pretrained", lambda *args, **kwargs: pytest.fail("a model is loaded"))
    check_written(tmp_path, plan)
    weights = load_file(tmp_path / "model.safetensors")
    pruned = {keys_in_files(model)[target.layer.key] for target in plan.targets}
    wide = {key: value if key in pruned else value.double() for key, value in weights.items()}
    save_file(wide, tmp_path / "model.safetensors", metadata={"format": "pt"})
    check_written(tmp_path, plan)  # nor where what is not pruned has another type


@pytest.mark.parametrize("name", ["head.bias", "blocks.1.up.bias", "blocks.0.down.weight"])
def test_a_weight_of_a_plain_module_that_was_not_written_is_an_error(name, tmp_path):
    model = Toy()
    plan = Plan.of(model, NxMConfig("asp"))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    check_written(tmp_path, plan)
    with torch.no_grad():
        model.get_parameter(name).add_(1.0)
    with pytest.raises(RuntimeError, match=rf"^{name.removesuffix('.weight')}.* is not the weight that was saved"):
        check_written(tmp_path, plan)


@pytest.mark.parametrize("form", ["another form that is loaded again", "another type"])
def test_parameters_that_are_saved_in_another_form_are_no_error(form, tmp_path, monkeypatch):
    model = make_bert()
    plan, name = Plan.of(model, NxMConfig("asp")), "bert.embeddings.word_embeddings.weight"
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    if form == "another type":
        weights[name] = weights[name].double()
    else:
        weights[name] = weights[name] * 2
        load = type(model).from_pretrained

        def load_half(*args, **kwargs):
            assert kwargs["dtype"] is torch.float32, "the type in memory"
            loaded = load(*args, **kwargs)
            with torch.no_grad():
                loaded[0].get_parameter(name).mul_(0.5)
            return loaded

        monkeypatch.setattr(type(model), "from_pretrained", load_half)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    check_written(tmp_path, plan)


@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
def test_a_weight_that_was_not_written_as_it_is_in_memory_is_an_error(shards, tmp_path, monkeypatch):
    """As on a disk that loses what it has written: the file is whole, and holds another number."""
    trainer = train_two_steps(tmp_path / "run")
    save_pretrained = type(trainer.model).save_pretrained

    def lossy(self, folder, **kwargs):
        save_pretrained(self, folder, **kwargs, **({"max_shard_size": "20KB"} if shards else {}))
        for path in Path(folder).glob("*.safetensors"):
            weights = load_file(path)
            for name in weights.keys() & {"bert.encoder.layer.1.output.dense.weight"}:
                weights[name].view(-1)[weights[name].abs().argmax()] *= 2  # 2:4 is kept
            save_file(weights, path, metadata={"format": "pt"})

    monkeypatch.setattr(type(trainer.model), "save_pretrained", lossy)
    with pytest.raises(RuntimeError, match=r"^bert\.encoder\.layer\.1\.output\.dense in .* is not the weight that was"):
        trainer.save_model(tmp_path / "end")


# -- files beside the weights ------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path):
    """The directory of a model with its tokenizer, and all that trainings and exports leave beside it."""
    folder = tmp_path / "source"
    for name in ("tokenizer.json", "config.json", "1_Pooling/config.json", "model.safetensors", "other.bin", ".cache",
                 "model.safetensors.index.json", "trainer_state.json", "runs/events", "onnx/model", "report.html",
                 "checkpoint-3/tokenizer.json"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (tmp_path / "elsewhere.txt").write_text("far away")
    (folder / "linked.txt").symlink_to(tmp_path / "elsewhere.txt")
    (folder / "tokenizer.json").chmod(0o400)
    return folder


@pytest.mark.parametrize("named", ["whole", "relative", "by a link"])
@pytest.mark.parametrize("place", ["../copy", "copy", "deep/copy"], ids=["beside", "inside", "deep inside"])
def test_files_of_the_model_are_copied_and_no_others(place, named, source, monkeypatch):
    """Nor is a folder copied into itself, however both are named, and no file outside of it changes."""
    target = source / place
    target.mkdir(parents=True)
    (target / "config.json").write_text("mine")
    before = hashes_of(source.parent)
    if named == "by a link":
        (source.parent / "link").symlink_to(source)
    monkeypatch.chdir(source)
    names = {"whole": (source, target), "relative": (".", place), "by a link": (source, f"../link/{place}")}
    copy_beside(*names[named])
    after = hashes_of(source.parent)
    target = target.resolve()
    new = {str((source.parent / name).relative_to(target)) for name in after.keys() - before.keys()}
    assert new == {"tokenizer.json", "1_Pooling/config.json", "linked.txt"}
    assert before.items() <= after.items(), "what was there has changed"
    assert (target / "linked.txt").read_text() == "far away" and not (target / "linked.txt").is_symlink()
    assert (target / "tokenizer.json").stat().st_mode & 0o200, "the copy of a file that cannot be written can be"


# -- directories that are written whole --------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("error", [None, RuntimeError("stop"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("there", ["nothing", "an empty directory", "files of a run that was killed"])
def test_a_directory_is_written_whole_or_not_at_all(there, error, keep, tmp_path):
    out = tmp_path / "deep" / "out"
    if there == "an empty directory":
        out.mkdir(parents=True)
    if there == "files of a run that was killed":
        (out.parent / ".out.unfinished" / "out").mkdir(parents=True)
        (out.parent / ".out.unfinished" / "out" / "stale.json").write_text("{}")
    with pytest.raises(type(error)) if error else nullcontext(), written_whole(out, 1, keep) as folder:
        assert folder.name == out.name and not any(folder.iterdir())
        (folder / "config.json").write_text("{}")
        assert not (out / "config.json").exists()
        if error:
            raise error
    whole = keep and error is None
    left = {path.relative_to(out.parent).as_posix() for path in out.parent.rglob("*") if path.is_file()}
    assert left == ({"out/config.json", f"out/{MANIFEST_FILE}"} if whole else set())
    assert whole is False or changed_files(out) == {}
    assert {path.name for path in out.parent.iterdir()} <= {"out"}


def test_a_disk_that_has_no_room_for_a_folder_is_named_in_one_error(tmp_path, monkeypatch):
    """There is nothing to remove then, which is no error of its own."""

    def full(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(WriteError, match="No space left on device"), written_whole(tmp_path / "out", 1):
        pytest.fail("the body must not run")


def test_a_directory_gets_its_name_after_its_files_are_on_the_disk(tmp_path, monkeypatch):
    """So that a machine that loses its power has all of them, or no directory of this name."""
    events, fsync, rename = [], os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append(os.fstat(handle).st_ino), fsync(handle)))
    monkeypatch.setattr(os, "rename", lambda old, new: (rename(old, new), events.append("renamed")))
    with written_whole(tmp_path / "out", 1) as folder:
        (folder / "inner").mkdir()
        for name in ("a.json", "inner/b.json"):
            (folder / name).write_text("{}")
        events.clear()
    renamed = len(events) - events[::-1].index("renamed")
    written = {path.stat().st_ino for path in (tmp_path / "out", *(tmp_path / "out").rglob("*"))}
    assert written <= set(events[: renamed - 1]) and events[renamed:] == [tmp_path.stat().st_ino]


@pytest.mark.parametrize("there", ["a file", "a directory with a file", "a file above it"])
def test_nothing_is_written_where_something_is(there, tmp_path):
    out = tmp_path / "out"
    if there == "a directory with a file":
        out.mkdir()
    (out / "mine" if out.is_dir() else out).write_text("mine")
    before = hashes_of(tmp_path)
    place = out / "deeper" / "out" if there == "a file above it" else out
    says = "is a file, so nothing can be written into it" if there == "a file above it" else "is there already"
    for write in (claimed, lambda place: written_whole(place, 1)):
        with pytest.raises((ValueError, NotADirectoryError), match=says), write(place):
            pytest.fail("the body must not run")
    assert hashes_of(tmp_path) == before and [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_a_directory_without_weights_is_an_error_unless_it_holds_an_adapter(name, tmp_path):
    model = make_bert()
    plan = Plan.of(model, NxMConfig("asp"))
    (tmp_path / name).mkdir()  # a folder of this name holds no weights
    with pytest.raises(RuntimeError, match="transformers has written no weights into"):
        check_written(tmp_path, plan)
    (tmp_path / "adapter_model.safetensors").touch()
    check_written(tmp_path, plan)


def test_the_bytes_of_a_model_are_those_of_its_weights_and_of_a_directory_those_of_its_files(tmp_path):
    model = make_bert()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert bytes_of(model) == sum(weight.nbytes for weight in model.parameters())
    files = list(tmp_path.glob("model-*.safetensors"))
    assert len(files) > 1 and bytes_of(tmp_path) == sum(len(path.read_bytes()) for path in files)


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
    _check_upload(uploads[-1][2])
    assert "## Training procedure" in (uploads[-1][2] / "README.md").read_text(), "the card is the Trainer's"


def test_files_are_compared_with_the_fingerprint_of_weights_that_are_held_in_parts(tmp_path):
    model = make_bert()
    plan = Plan.of(model, NxMConfig("asp"))
    model.save_pretrained(tmp_path)
    expected = fingerprints(plan)["targets"]
    check_written(tmp_path, plan, expected)
    weights = load_file(tmp_path / "model.safetensors")
    weights["bert.encoder.layer.1.output.dense.weight"][0, 0] += 1
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match="are not those that were saved"):
        check_written(tmp_path, plan, expected)
