"""Replace the files of a directory together: a process that is killed leaves the old ones, or the new ones.

New files are written into a hidden folder inside the directory. One rename says that they are complete. Then they take
the places of the old ones, one after the other. Whatever stops that, the next look at the directory goes on with it.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from nxm_hf.config.hub import write_text
from nxm_hf.storage.write_errors import explained

SAVING, COMPLETE = ".nxm_saving", ".nxm_replacing"  # the hidden folder, before and after it is complete
_LIST = "files.json"  # in it: what is to be moved and what is to be removed
_MAX_BYTES = 64 << 20  # of that list, as of a manifest
_CARD, _MANIFEST = "README.md", "nxm_manifest.json"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_OLD_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


@contextmanager
def replaced(folder: str | Path, needed: int) -> Iterator[Path]:
    """Give a hidden folder to write into. At the end, its files replace those of a directory; an error leaves those.

    Weight files of the directory that the new ones do not replace by name are removed. Other files stay.

    Args:
        folder: The directory; it may be missing.
        needed: About how many bytes will be written, for the message if there is no room.

    Yields:
        The folder. It has the name of the directory, and a copy of its model card.

    Raises:
        OSError: If a file cannot be written. The message says which, and how much room is needed.
        NotADirectoryError: If the directory, or one above it, is a file.
    """
    folder = Path(folder)
    check_parents(folder / SAVING)
    finish_replacing(folder)
    saving, missing = folder / SAVING, not folder.exists()
    try:
        with explained(folder, needed, saving):
            shutil.rmtree(saving, ignore_errors=True)  # of a save that was killed
            new = saving / folder.resolve().name
            new.mkdir(parents=True)
            if (folder / _CARD).is_file():
                shutil.copyfile(folder / _CARD, new / _CARD)
            yield new
            _complete(folder, new)
    except BaseException:
        shutil.rmtree(saving, ignore_errors=True)
        if missing:
            with suppress(OSError):
                folder.rmdir()
        raise
    finish_replacing(folder)


def check_parents(path: Path) -> None:
    """Raise if a file stands where a directory above a path should.

    Args:
        path: The path.

    Raises:
        NotADirectoryError: If there is such a file.
    """
    for parent in path.parents:
        if parent.is_file():
            raise NotADirectoryError(f"{parent} is a file, so nothing can be written into it. Name another directory.")


def finish_replacing(folder: str | Path) -> None:
    """Finish the replacement of files whose process was stopped. Usually there is nothing to do.

    Args:
        folder: The directory. It may be a stranger's: nothing outside it is read or changed.

    Raises:
        OSError: If a file cannot be moved.
        ValueError: If the list of the files is damaged.
    """
    folder = Path(folder)
    complete = folder / COMPLETE
    if complete.is_symlink() or not complete.is_dir():
        return
    lists = _read_lists(complete)
    try:
        for inner in [path for path in complete.iterdir() if not path.is_symlink()]:
            for name in lists["new"]:
                _move(inner / name, folder / name, folder)
        for name in lists["outdated"]:
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / SAVING, ignore_errors=True)
        os.rename(complete, folder / SAVING)  # which says that all is done
        shutil.rmtree(folder / SAVING, ignore_errors=True)
    except FileNotFoundError:  # another process has just done the same
        if complete.exists():
            raise
    except OSError as error:
        raise OSError(
            f"{folder} holds all files of a new save, and they cannot be put in place ({error}). Mend that and type: "
            f"nxm verify {folder}"
        ) from error


def is_inside(name: str) -> bool:
    """Return True if a relative name with "/" leads to a file inside its directory, on every system.

    Args:
        name: The name.
    """
    parts = PurePosixPath(name).parts
    too_long = len(name) > 1000 or any(len(part) > 255 for part in parts)
    odd = any(letter in name for letter in "\\:") or not name.isprintable()
    return bool(parts) and not (name.startswith("/") or ".." in parts or too_long or odd)


def sync_files(folder: str | Path) -> list[str]:
    """Wait until all files below a folder are on the disk.

    Args:
        folder: The folder.

    Returns:
        Their names, relative to it and with "/".
    """
    names = []
    for root, _, files in os.walk(folder):
        for name in files:
            sync(Path(root) / name)
            names.append((Path(root) / name).relative_to(folder).as_posix())
        sync(Path(root))
    return sorted(names)


def sync(path: Path) -> None:
    """Wait until a file, or the list of files in a folder, is on the disk.

    Args:
        path: The file or folder.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _complete(folder: Path, new: Path) -> None:
    """Say that all new files are written. Until the rename they are not."""
    names = sync_files(new)
    weights = not {_WEIGHTS, _INDEX}.isdisjoint(names)
    old = [path.name for path in folder.iterdir() if weights and _OLD_WEIGHTS.fullmatch(path.name)]
    # A manifest comes last. Until then the old one says that files have changed.
    new_files = sorted(names, key=lambda name: name == _MANIFEST)
    lists = {"new": new_files, "outdated": sorted({*old, _MANIFEST} - {*names})}
    write_text(folder / SAVING / _LIST, json.dumps(lists))
    sync(folder / SAVING)
    os.rename(folder / SAVING, folder / COMPLETE)
    sync(folder)


def _read_lists(complete: Path) -> dict[str, list[str]]:
    path = complete / _LIST
    try:
        if not path.is_file() or path.stat().st_size > _MAX_BYTES:
            raise ValueError("it is no regular file, or too long")
        lists = json.loads(path.read_text(encoding="utf-8"))
        new, outdated = list(lists["new"]), list(lists["outdated"])
        if all(is_inside(name) for name in new) and all(
            _OLD_WEIGHTS.fullmatch(name) or name == _MANIFEST for name in outdated
        ):
            return {"new": new, "outdated": outdated}
        problem = "it names files elsewhere"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        problem = " ".join(str(error).split())[:200]
    raise ValueError(f"{path} cannot be read ({problem}). Remove {complete}, and save the model again.")


def _move(source: Path, target: Path, folder: Path) -> None:
    """Move one file, unless it has been moved already, or a link leads it out of the directory."""
    inside = folder.resolve()
    if source.is_symlink() or not source.is_file() or not source.resolve().is_relative_to(inside):
        return
    if target.parent.resolve().is_relative_to(inside):
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
