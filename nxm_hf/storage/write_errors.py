"""Errors of a disk in one sentence: the file, the reason, the room that is needed, and what to do."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_RIGHTS = (errno.EACCES, errno.EPERM, errno.EROFS)
_NUMBER = re.compile(r"(?:\(os error |\bOs \{ code: )(\d+)")  # in errors of newer and older safetensors
_TORCH = re.compile(
    r"PytorchStreamWriter|inline_container|iostream error|cannot be opened|[Pp]arent directory"
)  # which has no numbers


UNCHANGED = "is as it was"


class WriteError(OSError):
    """A file could not be written.

    Args:
        number: The number of the system's error.
        file: The file, or the directory if the error does not say which.
        out: The directory that was to be written.
        needed: About how many bytes it needs; 0 if that is not known.
        free: How many there are; None if that is not known.
        left: What the directory is now, as the end of a sentence.
    """

    def __init__(self, number: int, file: str, out: Path, needed: int, free: int | None, left: str = UNCHANGED):
        super().__init__(_sentences(number, file, f"{out} {left}", needed, free))
        self.errno, self.file = number, file


@contextmanager
def explained(out: str | Path, needed: int, hidden: Path, left: str = UNCHANGED) -> Iterator[None]:
    """Turn errors of a disk in the body into a `WriteError`.

    Args:
        out: The directory that is to be written.
        needed: About how many bytes that needs.
        hidden: The folder that the body writes into.
        left: What the directory is after an error, as the end of a sentence.

    Raises:
        WriteError: If a file cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        written = _files(hidden)
        free = _free(Path(out))
        room = None if free is None else free + sum(path.stat().st_size for path in written)
        number = error.errno if isinstance(error, OSError) else _number(error, needed, free)
        if number not in (*_ROOM, *_RIGHTS, errno.EIO):
            raise
        file = getattr(error, "file", None) or getattr(error, "filename", None) or (written[-1] if written else out)
        if isinstance(error, SafetensorError):  # which removes what it could not complete
            file = f"The weights (safetensors) of {out}"
        raise WriteError(number, str(file), Path(out), needed, room, left) from error


def _files(folder: Path) -> list[Path]:
    """Return the files below a folder in the order in which they were written."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(files, key=lambda path: path.stat().st_mtime_ns)


def _number(error: Exception, needed: int, free: int | None) -> int | None:
    """Return the number of the system's error that a library hides in its text."""
    if found := _NUMBER.search(str(error)):
        return int(found[1])
    if isinstance(error, RuntimeError) and _TORCH.search(str(error)):
        return errno.ENOSPC if free is not None and free < max(needed, 1 << 20) else errno.EIO
    return None


def _sentences(number: int, file: str, left: str, needed: int, free: int | None) -> str:
    said = f"{file} could not be written: {os.strerror(number)}. {left}."
    if number in _RIGHTS:
        return f"{said} Make it writable, or name another place."
    if number not in _ROOM:
        return f"{said} The disk may be failing; name another place."
    room = f"its files need {needed:,} bytes" if needed else "its files need more room"
    return (
        f"{said} Beside what is there, {room}{'' if free is None else f', and {free:,} are free'}. Make room for them."
    )


def _free(out: Path) -> int | None:
    """Return the free bytes of the file system of a directory, or of the nearest one above that exists."""
    for folder in (out, *out.parents):
        with suppress(OSError):
            return shutil.disk_usage(folder).free
    return None
