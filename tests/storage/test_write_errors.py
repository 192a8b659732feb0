"""Errors of a disk: one sentence for each, whatever library saw it; other errors pass as they are."""

import errno
import os
import shutil
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from nxm_hf.storage.write_errors import WriteError, explained

FULL = "Error while serializing: I/O error: No space left on device (os error 28)"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EROFS])
def test_the_error_names_the_file_the_reason_and_what_to_do(number, tmp_path):
    advice = {errno.EIO: "The disk may be failing; name another place."}
    advice |= dict.fromkeys((errno.EACCES, errno.EROFS), "Make it writable, or name another place.")
    with pytest.raises(WriteError) as caught, explained(tmp_path / "out", 1_234_567, tmp_path / "no"):
        raise OSError(number, os.strerror(number), str(tmp_path / "out" / "a.json"))
    said = str(caught.value)
    assert said.startswith(
        f"{tmp_path}/out/a.json could not be written: {os.strerror(number)}. {tmp_path}/out is as it was."
    )
    assert said.endswith(advice.get(number, "are free. Make room for them."))
    assert ("need 1,234,567 bytes, and " in said) == (number not in advice) and caught.value.errno == number


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError(FULL),
        RuntimeError("[enforce fail at inline_container.cc:595] . unexpected pos"),
        RuntimeError("basic_ios::clear: iostream error"),  # if only the last bytes of a file of torch find no room
    ],
    ids=repr,
)
def test_errors_of_libraries_without_a_number_are_understood(error, tmp_path):
    with pytest.raises(WriteError, match="could not be written: No space left on device") as caught:
        with explained(tmp_path, 10**18, tmp_path):
            raise error
    assert caught.value.__cause__ is error
    assert isinstance(error, RuntimeError) or str(caught.value).startswith(
        f"The weights (safetensors) of {tmp_path} could"
    )


def test_a_failing_disk_with_room_is_no_full_one(tmp_path):
    with pytest.raises(WriteError, match=r"Input/output error\. .* is as it was\. The disk may be failing"):
        with explained(tmp_path, 1, tmp_path):
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")


def test_what_was_written_so_far_counts_as_free_because_it_is_removed(tmp_path, monkeypatch):
    asked = []

    def usage(folder):
        asked.append(folder)
        if len(asked) < 3:
            raise FileNotFoundError(folder)
        return SimpleNamespace(free=1000)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    (tmp_path / "inner").mkdir()
    for name in ("a", "inner/b"):
        (tmp_path / name).write_bytes(bytes(2000))
    with pytest.raises(WriteError, match=r"need 7,000 bytes, and 5,000 are free\. Make room for them\.$"):
        with explained(tmp_path / "no" / "such", 7000, tmp_path):
            raise OSError(errno.ENOSPC, "full", "file")
    assert asked == [tmp_path / "no" / "such", tmp_path / "no", tmp_path], "the nearest directory that exists"
    asked.clear()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: (_ for _ in ()).throw(OSError("no such file system")))
    with pytest.raises(WriteError, match=r"need 7,000 bytes\. Make room for them\.$"):
        with explained("relative/out", 7000, tmp_path):
            raise OSError(errno.ENOSPC, "full", "file")


@pytest.mark.parametrize("needed", [0, 1 << 20, (1 << 20) + 1, 1 << 30])
@pytest.mark.parametrize("missing", [0, 1])
def test_a_disk_is_full_if_it_has_fewer_bytes_than_are_needed(needed, missing, tmp_path, monkeypatch):
    """Of a save of unknown size, and of a small one, a mebibyte is needed."""
    free = max(needed, 1 << 20) - missing
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    with pytest.raises(WriteError) as caught, explained(tmp_path / "out", needed, tmp_path / "hidden"):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
    assert caught.value.errno == (errno.ENOSPC if missing else errno.EIO)
    assert (f"{free:,} are free" in str(caught.value)) == bool(missing)


def test_an_error_is_explained_once_and_names_the_outer_directory(tmp_path):
    with pytest.raises(WriteError) as caught, explained(tmp_path, 0, tmp_path):
        with explained(tmp_path / "inner", 5, tmp_path):
            raise OSError(errno.ENOSPC, "full", "file")
    assert str(caught.value).startswith("file could not be written: No space left on device. ")
    assert f"{tmp_path} is as it was" in str(caught.value) and "need more room" in str(caught.value)


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "no"), RuntimeError("other"), SafetensorError("other"), OSError("x")]
)
def test_other_errors_pass(error, tmp_path):
    with pytest.raises(type(error)) as caught, explained(tmp_path, 0, tmp_path):
        raise error
    assert caught.value is error


def test_the_file_that_was_written_last_is_named_where_the_error_names_none(tmp_path):
    for number, name in enumerate(("b", "c", "a")):
        (tmp_path / name).write_bytes(bytes(1000))
        os.utime(tmp_path / name, ns=(number, number))
    with pytest.raises(WriteError, match=f"^{tmp_path}/a could not be written: File too large"):
        with explained(tmp_path, 0, tmp_path):
            raise OSError(errno.EFBIG, "File too large")
