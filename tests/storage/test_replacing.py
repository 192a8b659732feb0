"""Files that replace others together, and the rest of a replacement that was stopped."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from nxm_hf import prune, verify
from nxm_hf.cli.main import main as nxm
from nxm_hf.storage.inspect import inspect
from nxm_hf.storage.manifest import MANIFEST_FILE, changed_files, record_model
from nxm_hf.storage.replacing import COMPLETE, SAVING, finish_replacing, is_inside, replaced, sync_files
from nxm_hf.storage.weight_files import INDEX, WEIGHTS
from tests.support.models import make_bert
from tests.support.saving import hashes_of


def write(folder: Path, **files: str) -> None:
    """Write small files; "_" in a name stands for a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)


def save(folder, size: str = "5GB", seed: int = 0) -> None:
    """Save a sparse model over what is in a directory."""
    prune(model := make_bert(seed), "2:4")
    with replaced(folder, 0) as new:
        model.save_pretrained(new, max_shard_size=size)
        record_model(new)


def interrupted(folder: Path, new: list[object], outdated: list[object], **files: str) -> Path:
    """Leave what a process leaves that is stopped before it has moved the first file."""
    write(folder / COMPLETE / "inner", **files)
    (folder / COMPLETE / "files.json").write_text(json.dumps({"new": new, "outdated": outdated}))
    return folder / COMPLETE


def test_new_files_replace_old_ones_and_other_files_stay(tmp_path):
    write(tmp_path, a_txt="old", b_txt="old", README_md="Mine.")
    with replaced(tmp_path, 0) as new:
        assert new.name == tmp_path.name and (new / "README.md").read_text() == "Mine."
        write(new, a_txt="new", c_txt="new")
        write(new / "inner", d_txt="new")
        write(new / "inner" / "deep" / "down", d_txt="new")
        assert (tmp_path / "a.txt").read_text() == "old"
    left = {name: (tmp_path / name).read_text() for name in hashes_of(tmp_path)}
    others = {"README.md": "Mine.", "b.txt": "old"}
    assert left == others | dict.fromkeys(("a.txt", "c.txt", "inner/d.txt", "inner/deep/down/d.txt"), "new")


def test_what_a_killed_save_has_written_is_no_part_of_the_next_one(tmp_path):
    write(tmp_path / SAVING / tmp_path.name, a_txt="of a save that was killed")
    write(tmp_path / SAVING / "other", b_txt="of a save that was killed")
    with replaced(tmp_path, 0) as new:
        assert not os.listdir(new)
        write(new, c_txt="new")
    assert os.listdir(tmp_path) == ["c.txt"]


def test_the_folder_has_the_name_of_the_directory_however_it_is_reached(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "model")
    monkeypatch.chdir(tmp_path / "model")
    for folder in (".", tmp_path / "link", "../model"):
        with replaced(folder, 0) as new:
            assert new.name == "model"
            write(new, a_txt=str(folder))
        assert (tmp_path / "model" / "a.txt").read_text() == str(folder)


def test_a_manifest_takes_its_place_after_all_other_files(tmp_path, monkeypatch):
    """Until then the old one tells that files have changed."""
    moved, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: (moved.append(target.name), replace(source, target)))
    with replaced(tmp_path, 0) as new:
        write(new, a_txt="new", z_txt="new")
        (new / MANIFEST_FILE).write_text("{}")
    assert {"a.txt", "z.txt"} <= {*moved[:-1]} and moved[-1] == MANIFEST_FILE not in moved[:-1]


def test_a_hidden_folder_that_stays_after_all_is_in_place_is_no_error(tmp_path, monkeypatch):
    """The next save removes it."""

    def refuse(path, ignore_errors=False):
        if not ignore_errors:
            raise PermissionError(errno.EACCES, "no")

    interrupted(tmp_path, ["a.txt"], [], a_txt="new")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        finish_replacing(tmp_path)
    assert (tmp_path / "a.txt").read_text() == "new" and sorted(os.listdir(tmp_path)) == [SAVING, "a.txt"]
    with replaced(tmp_path, 0) as new:
        write(new, b_txt="new")
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b.txt"]


def test_an_error_leaves_the_old_files_and_nothing_else(tmp_path):
    write(tmp_path / "old", a_txt="old")
    before = hashes_of(tmp_path)
    for folder in ("old", "missing"):
        with pytest.raises(KeyError), replaced(tmp_path / folder, 0) as new:
            write(new, a_txt="new")
            raise KeyError
    assert hashes_of(tmp_path) == before and not (tmp_path / "missing").exists()


def test_a_directory_that_takes_no_folder_is_named_with_the_reason(tmp_path, monkeypatch):
    def refuse(path, *args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    write(tmp_path / "old", a_txt="old")
    monkeypatch.setattr(Path, "mkdir", refuse)
    for folder in ("old", "missing"):
        with pytest.raises(OSError, match=r"could not be written: Permission denied.*Make it writable"):
            with replaced(tmp_path / folder, 0):
                pass
    assert os.listdir(tmp_path) == ["old"]


def test_weights_and_a_manifest_of_other_names_are_outdated(tmp_path):
    for number, size in enumerate(("60KB", "5GB", "40KB", "60KB")):
        save(tmp_path, size, number)
        files = {path.name for path in tmp_path.iterdir()}
        assert (WEIGHTS in files) == (size == "5GB") and (INDEX in files) == (size != "5GB")
        assert verify(tmp_path).ok and len(inspect(tmp_path).layers) == 12
    with replaced(tmp_path, 0) as new:
        write(new, notes_txt="no weights")
    assert INDEX in {path.name for path in tmp_path.iterdir()} and "nxm_manifest.json" not in os.listdir(tmp_path)


@pytest.mark.parametrize(
    "look", [verify, inspect, changed_files, finish_replacing, lambda path: nxm(["verify", str(path)])]
)
def test_whoever_looks_next_puts_the_rest_in_place(look, tmp_path):
    save(tmp_path / "a", "60KB", seed=1)
    save(tmp_path / "b", seed=2)
    new = hashes_of(tmp_path / "b")
    hidden = tmp_path / "a" / COMPLETE
    hidden.mkdir()
    lists = {"new": sorted(new), "outdated": [INDEX, *(f"model-0000{n}-of-00002.safetensors" for n in (1, 2))]}
    (hidden / "files.json").write_text(json.dumps(lists))
    os.rename(tmp_path / "b", hidden / "b")
    os.replace(hidden / "b" / WEIGHTS, tmp_path / "a" / WEIGHTS)  # was moved before the process was stopped
    look(tmp_path / "a")
    assert hashes_of(tmp_path / "a") == new


def test_the_next_save_puts_the_rest_in_place_before_its_own_files(tmp_path):
    interrupted(tmp_path, ["a.txt", "b.txt"], [], a_txt="second", b_txt="second")
    write(tmp_path, a_txt="first", c_txt="first")
    write(tmp_path / SAVING, d_txt="of a save that was killed")
    with replaced(tmp_path, 0) as new:
        write(new, b_txt="third")
    assert {name: (tmp_path / name).read_text() for name in hashes_of(tmp_path)} == {
        "a.txt": "second",
        "b.txt": "third",
        "c.txt": "first",
    }


@pytest.mark.parametrize("by_another", [True, False])
def test_a_file_that_is_gone_is_an_error_unless_another_process_has_moved_all(by_another, tmp_path, monkeypatch):
    hidden = interrupted(tmp_path, ["a.txt"], [], a_txt="new")

    def gone(source, target):
        if by_another:
            hidden.rename(tmp_path / "elsewhere")
        raise FileNotFoundError(source)

    monkeypatch.setattr(os, "replace", gone)
    if by_another:
        finish_replacing(tmp_path)
        return
    with pytest.raises(FileNotFoundError, match=r"a\.txt"):
        finish_replacing(tmp_path)


def test_files_that_cannot_be_put_in_place_are_an_error_that_says_what_to_type(tmp_path, monkeypatch):
    interrupted(tmp_path, ["a.txt"], [], a_txt="new")

    def refuse(*paths):
        raise PermissionError(errno.EACCES, "no")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(OSError, match=rf"in place \(.*no.*\)\. Mend that and type: nxm verify {tmp_path}"):
            finish_replacing(tmp_path)
    finish_replacing(tmp_path)
    assert (tmp_path / "a.txt").read_text() == "new"


@pytest.mark.parametrize(
    ("new", "outdated"),
    [
        (["../../secret.txt"], []),
        (["notes.txt", "../../secret.txt"], []),
        (["/etc/passwd"], []),
        ([5], []),
        ([], ["notes.txt"]),
        ([], ["model.safetensors", "notes.txt"]),
        ([], ["../model.safetensors"]),
        ([], [None]),
        ("x", 5),
    ],
)
def test_a_list_of_a_stranger_that_leads_elsewhere_is_refused(new, outdated, tmp_path):
    write(tmp_path / "model", notes_txt="mine")
    hidden = interrupted(tmp_path / "model", new, outdated)
    write(tmp_path, secret_txt="secret", model_safetensors="mine")
    before = hashes_of(tmp_path)
    with pytest.raises(
        ValueError, match=rf"files\.json cannot be read \(.*\)\. Remove {hidden}, and save the model again"
    ):
        finish_replacing(tmp_path / "model")
    assert nxm(["verify", str(tmp_path / "model")]) == 2
    assert hashes_of(tmp_path) == before


def test_links_of_a_stranger_are_not_followed(tmp_path):
    write(tmp_path / "home", key="secret")
    model, other = tmp_path / "model", tmp_path / "other"
    hidden = interrupted(model, ["key", "linked/key", "deep/key"], [])
    (hidden / "out").symlink_to(tmp_path / "home")
    (hidden / "inner" / "key").symlink_to(tmp_path / "home" / "key")
    (hidden / "inner" / "deep").symlink_to(tmp_path / "home")
    write(hidden / "inner" / "linked", key="stranger's")
    (model / "linked").symlink_to(tmp_path / "home")
    finish_replacing(model)
    assert (tmp_path / "home" / "key").read_text() == "secret" and os.listdir(tmp_path / "home") == ["key"]
    assert os.listdir(model) == ["linked"]
    other.mkdir()
    (other / COMPLETE).symlink_to(tmp_path / "home")
    finish_replacing(other)
    assert os.listdir(tmp_path / "home") == ["key"]


@pytest.mark.parametrize("text", ["", "[", "[" * 100_000, "5", "{}", '{"new": {"a": 1}, "outdated": {}}'])
def test_a_damaged_list_is_refused_in_a_sentence(text, tmp_path):
    hidden = interrupted(tmp_path, [], [])
    (hidden / "files.json").write_text(text)
    if text == "":
        (hidden / "files.json").unlink()
        with pytest.raises(ValueError, match=r"files\.json cannot be read \(it is no regular file"):
            finish_replacing(tmp_path)
        (hidden / "files.json").touch()
    if text.startswith('{"new'):
        finish_replacing(tmp_path)  # the names of a dict are a list of names
    else:
        said = r"Expecting value: line 1 column \d" if text in ("", "[") else ".+"
        with pytest.raises(ValueError, match=rf"files\.json cannot be read \({said}.*\)\. Remove "):
            finish_replacing(tmp_path)


@pytest.mark.parametrize("name", ["a", "a/b.json", "a b", "é.json", ".hidden"])
def test_names_inside_a_directory_are_told_from_others(name):
    assert is_inside(name)
    for wrong in ("", "/a", "../a", "a/../../b", "a\\b", "C:a", "a\n", "a\0", "x" * 300, "a/" * 600 + "a", "\x1b[2J"):
        assert not is_inside(wrong), wrong


def test_names_are_bounded_by_what_file_systems_hold():
    assert is_inside("x" * 255) and is_inside("a/" * 500)
    for wrong in ("x" * 256, "a/" + "x" * 256, "x" * 256 + "/a", "a/" * 500 + "a"):
        assert not is_inside(wrong), wrong


def test_a_file_where_a_directory_is_needed_is_named(tmp_path):
    write(tmp_path, a_txt="mine")
    for folder in (tmp_path / "a.txt", tmp_path / "a.txt" / "b" / "c"):
        with pytest.raises(
            NotADirectoryError, match=rf"^{tmp_path}/a\.txt is a file, so nothing can be written into it\."
        ):
            with replaced(folder, 0):
                pass
    assert (tmp_path / "a.txt").read_text() == "mine"


def test_a_directory_may_be_reached_by_a_link(tmp_path):
    interrupted(tmp_path / "model", ["a.txt"], [], a_txt="new")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    finish_replacing(tmp_path / "link")
    assert os.listdir(tmp_path / "model") == ["a.txt"]


@pytest.mark.parametrize(("more", "says"), [(0, "Expecting value"), (1, "it is no regular file, or too long")])
def test_a_list_may_have_as_many_bytes_as_a_manifest(more, says, tmp_path):
    hidden = interrupted(tmp_path, [], [])
    os.truncate(hidden / "files.json", 0)
    os.truncate(hidden / "files.json", (64 << 20) + more)
    with pytest.raises(ValueError, match=rf"files\.json cannot be read \({says}"):
        finish_replacing(tmp_path)


def test_all_files_are_on_the_disk_before_a_rename_says_that_they_are_complete(tmp_path, monkeypatch):
    events, fsync, rename = [], os.fsync, os.rename
    monkeypatch.setattr(
        os, "fsync", lambda handle: (events.append(os.readlink(f"/proc/self/fd/{handle}")), fsync(handle))
    )
    monkeypatch.setattr(os, "rename", lambda *paths: (events.append((*map(str, paths),)), rename(*paths)))
    with replaced(tmp_path, 0) as new:
        write(new / "inner", a_txt="a")
    said = events.index((str(tmp_path / SAVING), str(tmp_path / COMPLETE)))
    needed = [new / "inner" / "a.txt", new / "inner", new, tmp_path / SAVING]
    if Path("/proc/self/fd").exists():
        assert {*map(str, needed)} <= {*events[:said]} and str(tmp_path) in events[said:]


def test_every_file_is_synced_and_named(tmp_path, monkeypatch):
    write(tmp_path / "inner", a_txt="a")
    write(tmp_path, b_txt="b")
    synced, fsync = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: (synced.append(os.readlink(f"/proc/self/fd/{handle}")), fsync(handle))
    )
    handles = len(os.listdir("/dev/fd"))
    assert sync_files(tmp_path) == ["b.txt", "inner/a.txt"] and len(os.listdir("/dev/fd")) == handles
    if Path("/proc/self/fd").exists():
        assert {*synced} == {str(tmp_path / name) for name in ("", "b.txt", "inner", "inner/a.txt")} - {
            f"{tmp_path}/"
        } | {str(tmp_path)}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes, devices and links")
@pytest.mark.parametrize(
    "put",
    [os.mkfifo, lambda path: os.symlink("/dev/zero", path), lambda path: (path.touch(), os.truncate(path, 2**33))],
    ids=["a pipe", "an endless device", "8 GiB without a byte"],
)
def test_a_list_that_never_ends_is_not_read(put, tmp_path):
    hidden = interrupted(tmp_path, [], [])
    (hidden / "files.json").unlink()
    put(hidden / "files.json")
    with pytest.raises(ValueError, match=r"files\.json cannot be read \(it is no regular file, or too long\)"):
        finish_replacing(tmp_path)
