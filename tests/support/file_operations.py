"""File operations, as an audit hook sees them."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

WATCHED = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink", "shutil.rmtree")
WATCHED += ("torch.save",)  # see `audit_torch`
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def changes_files(event: str, args: tuple, folder: str) -> bool:
    """Return True if an audit event is about to change a file whose path has a folder in it; locks do not count."""
    writes = event == "open" and (args[2] or 0) & WRITING
    return bool(writes or event in WATCHED) and folder in str(args[0]) and ".lock" not in str(args[0])


def audit_torch() -> None:
    """Have torch.save raise an audit event; it opens its files without one."""
    save = torch.save

    def save_audited(obj: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        sys.audit("torch.save", file)
        save(obj, file, *args, **kwargs)

    torch.save = save_audited


@contextmanager
def limited_files(size: int) -> Iterator[None]:
    """Have no file of this process grow beyond a size in the body, where the system has such limits."""
    import resource  # Windows has none

    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
