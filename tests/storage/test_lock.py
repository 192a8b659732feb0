"""Locks: one process writes a directory; the lock of a dead process is taken over."""

import errno
import json
import logging
import os
import signal
from datetime import datetime
from pathlib import Path

import pytest

from nxm_hf.pruning.directory import prune_directory
from nxm_hf.storage import lock as lock_module
from nxm_hf.storage.lock import DirectoryLock
from nxm_hf.storage.manifest import LOCK_FILE
from nxm_hf.storage.packed_directory import pack_directory
from tests.support.models import make_bert
from tests.support.training import KINDS, InterruptAt, eventful, make_trainer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals")


@pytest.fixture
def holding():
    """A function that has another process hold a lock, until it is killed or the test ends."""
    children = []

    def hold(path) -> int:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            lock = DirectoryLock(path, "")
            lock.acquire()
            os.write(writing, b"1")
            signal.pause()
            os._exit(0)
        children.append(child)
        assert os.read(reading, 1) == b"1"
        os.close(reading), os.close(writing)
        return child

    yield hold
    for child in children:
        kill(child)


def kill(child: int) -> None:
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def test_a_second_process_is_refused_and_told_who_the_first_is(holding, tmp_path):
    child = holding(tmp_path / "lock")
    with pytest.raises(ValueError, match=rf"^Do not \(held by process {child} on .* since 20.*; see .*lock\)\.$"):
        DirectoryLock(tmp_path / "lock", "Do not").acquire()
    assert json.loads((tmp_path / "lock").read_text())["pid"] == child


def test_the_lock_of_a_killed_process_is_taken_over(holding, tmp_path):
    kill(holding(tmp_path / "lock"))
    assert (tmp_path / "lock").exists()
    with DirectoryLock(tmp_path / "lock", ""):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "lock").exists()


def test_a_child_does_not_inherit_the_lock_and_a_dropped_one_is_free(tmp_path):
    def taken_by_child() -> bool:
        child = os.fork()
        if child == 0:
            try:
                DirectoryLock(tmp_path / "lock", "").acquire()
            except ValueError:
                os._exit(1)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    lock = DirectoryLock(tmp_path / "lock", "")
    lock.acquire()
    assert not taken_by_child()
    del lock
    assert taken_by_child()


def test_one_process_may_lock_again(tmp_path):
    first = DirectoryLock(tmp_path / "lock", "")
    first.acquire()
    with DirectoryLock(tmp_path / "lock", ""):
        pass
    first.release()
    first.release()


def test_a_place_that_cannot_be_written_is_noted_and_not_locked(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "lock"
    with caplog.at_level(logging.DEBUG, "nxm_hf"), DirectoryLock(path, ""):
        pass
    (message,) = caplog.messages
    assert message.startswith(f"{path} cannot be opened: [Errno ")


def test_a_lock_file_is_made_with_its_folders_and_dated_to_the_second(tmp_path):
    path = tmp_path / "a" / "b" / "lock"
    path.parent.mkdir(parents=True)
    path.write_text("x" * 500)  # of a dead process with a longer name
    for place in (path, tmp_path / "c" / "d" / "lock"):
        umask = os.umask(0)
        try:
            with DirectoryLock(place, ""):
                held = json.loads(place.read_text())
                assert place is path or place.stat().st_mode & 0o777 == 0o644
        finally:
            os.umask(umask)
        since = datetime.fromisoformat(held["since"])
        assert set(held) == {"pid", "host", "since"} and since.tzinfo is not None and "." not in held["since"]


def open_files() -> list[str]:
    return sorted(os.listdir("/dev/fd"))


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="needs a list of open files")
def test_a_lock_that_is_refused_or_released_leaves_no_file_open(holding, tmp_path):
    before = open_files()
    child = holding(tmp_path / "lock")
    refused, freed = DirectoryLock(tmp_path / "lock", ""), DirectoryLock(tmp_path / "other", "")
    with pytest.raises(ValueError, match="held by"):
        refused.acquire()
    freed.acquire()
    assert len(open_files()) == len(before) + 1
    freed.release()
    assert open_files() == before
    kill(child)


def test_a_lock_that_is_released_again_leaves_that_of_another_process(holding, tmp_path):
    lock = DirectoryLock(tmp_path / "lock", "")
    lock.acquire()
    lock.release()
    holding(tmp_path / "lock")
    lock.release()
    assert (tmp_path / "lock").exists()


def test_a_lock_whose_file_somebody_has_removed_is_freed_without_an_error(tmp_path):
    before = open_files()
    with DirectoryLock(tmp_path / "lock", ""):
        (tmp_path / "lock").unlink()
    assert open_files() == before and not list(tmp_path.iterdir())


@pytest.mark.parametrize("removed", [False, True])
def test_a_file_system_without_locks_is_noted_and_nothing_is_locked(removed, tmp_path, monkeypatch, caplog):
    def refuse(*arguments):
        if removed:
            (tmp_path / "lock").unlink()
        raise OSError(errno.ENOLCK, "none here")

    monkeypatch.setattr(lock_module.fcntl, "lockf", refuse)
    lock, before = DirectoryLock(tmp_path / "lock", ""), open_files()
    with caplog.at_level(logging.DEBUG, "nxm_hf"):
        lock.acquire()
    assert caplog.messages == [f"{tmp_path / 'lock'} has no locks: [Errno {errno.ENOLCK}] none here"]
    assert not list(tmp_path.iterdir()) and open_files() == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_training_in_one_directory_is_refused(kind, holding, tmp_path):
    holding(tmp_path / "out" / LOCK_FILE)
    trainer = make_trainer(tmp_path / "out", eventful("ste"), kind)
    with pytest.raises(ValueError, match=r"is the output_dir of another training\. Wait for it, or name another"):
        trainer.train()
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK_FILE]


def test_a_training_unlocks_at_its_end_and_after_an_interrupt(tmp_path):
    trainer = make_trainer(tmp_path, eventful("ste"), callbacks=[InterruptAt(2)], save_strategy="no")
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not (tmp_path / LOCK_FILE).exists()
    for kind in KINDS:
        make_trainer(tmp_path, eventful("ste"), kind, save_strategy="no").train()
        assert not (tmp_path / LOCK_FILE).exists()


def test_a_target_of_prune_or_pack_that_another_process_writes_is_refused(holding, tmp_path):
    make_bert().save_pretrained(tmp_path / "dense")
    prune_directory(tmp_path / "dense", tmp_path / "sparse", "2:4")
    child = holding(tmp_path / ".out.lock")
    says = rf"out is being written by another process\. Wait for it, .* \(held by process {child} on "
    with pytest.raises(ValueError, match=says):
        prune_directory(tmp_path / "dense", tmp_path / "out", "2:4")
    with pytest.raises(ValueError, match=says):
        pack_directory(tmp_path / "sparse", tmp_path / "out")
    kill(child)
    prune_directory(tmp_path / "dense", tmp_path / "out", "2:4")
    assert {path.name for path in tmp_path.iterdir()} == {"dense", "sparse", "out"}


def test_a_lock_file_that_its_holder_has_just_removed_is_made_anew(tmp_path, monkeypatch):
    """The holder can remove it between the moment that it is opened here and the moment that it is locked."""
    lockf, removed = lock_module.fcntl.lockf, []

    def remove_first(*arguments):
        if not removed:
            removed.append((tmp_path / "lock").unlink())
        return lockf(*arguments)

    monkeypatch.setattr(lock_module.fcntl, "lockf", remove_first)
    with DirectoryLock(tmp_path / "lock", ""):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
