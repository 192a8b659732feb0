"""A lock that keeps two processes from writing one directory at the same time."""

import json
import logging
import os
import socket
import weakref
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("nxm_hf")


class DirectoryLock:
    """Lock a directory for one process, until `release`, the end of a `with` block, or the end of the process.

    It is a POSIX record lock on a small file that says who holds it. The system frees the lock when its process ends,
    however that happens, so a file that a dead process left is taken over. Within one process the lock does not count:
    a training that was interrupted in a notebook can be started again. Child processes do not inherit it.

    On network file systems it holds between machines if the file system has record locks, as NFS 4 and Lustre have.
    Where there are none (Windows, some FUSE mounts), or where the file cannot be written, nothing is locked.

    Args:
        path: The lock file.
        purpose: A text for the error: what is being written, and what another process should do.
    """

    def __init__(self, path: str | Path, purpose: str):
        self.path, self.purpose = Path(path), purpose
        self._close: Callable[[], object] | None = None  # closes the file, also when this object is dropped

    def acquire(self) -> None:
        """Take the lock, or do nothing where there are no locks.

        Raises:
            ValueError: If another process holds it. The message names the process.
        """
        while fcntl is not None and self._close is None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:  # the write that follows says so in better words
                logger.debug("%s cannot be opened: %s", self.path, error)
                return
            close = weakref.finalize(self, os.close, file)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                holder = _holder(file)
                close()
                raise ValueError(f"{self.purpose} (held by {holder}; see {self.path}).") from None
            except OSError as error:
                close()
                self.path.unlink(missing_ok=True)
                logger.debug("%s has no locks: %s", self.path, error)
                return
            if _is_at(file, self.path):
                _sign(file)
                self._close = close
            else:  # its holder removed it between the two calls
                close()

    def release(self) -> None:
        """Remove the lock file, and free the lock if this process holds it."""
        if self._close is not None:
            self.path.unlink(missing_ok=True)  # before it is free: another process must not take it before that
            self._close()
            self._close = None

    def __enter__(self) -> "DirectoryLock":
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def _is_at(file: int, path: Path) -> bool:
    """Return True if an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _sign(file: int) -> None:
    """Write into the lock file who holds it."""
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    with suppress(OSError):  # a full disk; the lock holds without its text
        os.ftruncate(file, 0)
        os.write(file, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode())


def _holder(file: int) -> str:
    """Return the holder of a lock, as far as its file names it."""
    try:
        holder = json.loads(os.read(file, 1000))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"
