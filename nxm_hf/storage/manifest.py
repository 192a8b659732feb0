"""The manifest of a directory: size and digest of every file, so that a changed file is found and named.

`nxm_manifest.json` is written after all other files and replaced in one step, so a save that was cut short has none.
Model cards and hidden files are left out: people edit them.

The digest finds accidents; it is no signature. Of a file of up to 1 MiB, it is the SHA-256 of its content. SHA-256 of
gigabytes would take a quarter of the time of a save. So a longer file is read as blocks of 255 rows of 513 integers of
64 bits. The digest is the SHA-256 of the sums of all rows and all columns, modulo 2^64. That finds every change of up
to three integers in a block and every burst of up to one row of bytes. A larger change goes unseen only if it leaves
hundreds of such sums as they were.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from nxm_hf._version import __version__
from nxm_hf.config.hub import write_text
from nxm_hf.storage.file_blocks import Reader, read_in_blocks
from nxm_hf.storage.file_digest import FileDigest
from nxm_hf.storage.model_source import MODEL_FILES
from nxm_hf.storage.replacing import finish_replacing, is_inside

MANIFEST_FILE = "nxm_manifest.json"
LOCK_FILE = "_nxm.lock"  # of a training, in its output directory; uploads leave out names that begin so
RESTORE = f"Restore them from a copy. If you changed them yourself, delete {MANIFEST_FILE}."
FORMAT = 1
_LEFT_OUT = ("README.md", MANIFEST_FILE, LOCK_FILE)
_OTHER_FOLDERS = ("checkpoint-", "runs", "wandb", "report", "__pycache__")  # by how their names begin
_MAX_BYTES = 64 << 20  # of a manifest; one of 200,000 files is half as long


class FileStamp(NamedTuple):
    """Identify one state of a file without reading it.

    Args:
        modified: Time of its last change in nanoseconds.
        size: Its bytes.
        inode: Its number in the file system.
    """

    modified: int
    size: int
    inode: int


def write_manifest(
    folder: str | Path,
    names: Iterable[str] | None = None,
    readers: Mapping[str, Sequence[Reader]] | None = None,
    expected: Mapping[str, str] | None = None,
) -> None:
    """Write the manifest of a directory, after all of its files.

    Args:
        folder: The directory.
        names: The files to record, relative to it and with "/"; by default all but model cards, hidden files, and the
            checkpoints and logs of a training.
        readers: By name of a file, the functions to call with its blocks.
        expected: By name of a file, the digest of the bytes that were to be written.

    Raises:
        RuntimeError: If a file has another digest than expected. No manifest is written then.
    """
    folder = Path(folder)
    entries = _entries(folder, _names(folder) if names is None else sorted(names), readers)
    for name, digest in (expected or {}).items():
        if name in entries and entries[name]["digest"] != digest:
            raise RuntimeError(f"{name} in {folder} is not what was written; the disk may be full or failing.")
    _write(folder, entries)


def add_to_manifest(folder: str | Path, pattern: str) -> None:
    """Record files that other processes wrote into a directory after its manifest was written.

    Args:
        folder: The directory. One without a manifest is left alone.
        pattern: Which files to add, such as "rng_state_*.pth".
    """
    folder = Path(folder)
    recorded = read_manifest(folder)
    if recorded is not None:
        added = sorted(path.name for path in folder.glob(pattern) if path.name not in recorded)
        _write(folder, recorded | _entries(folder, added))


def remove_manifest(folder: str | Path) -> None:
    """Remove the manifest of a directory, because its files are about to change.

    Args:
        folder: The directory.
    """
    (Path(folder) / MANIFEST_FILE).unlink(missing_ok=True)


def file_stamps(folder: str | Path) -> dict[str, FileStamp]:
    """Return the state of each file that a manifest would record, to see later which of them were written.

    Args:
        folder: The directory; it may be missing.
    """
    stats = {name: (Path(folder) / name).stat() for name in _names(Path(folder))}
    return {name: FileStamp(stat.st_mtime_ns, stat.st_size, stat.st_ino) for name, stat in stats.items()}


def record_model(folder: str | Path, readers: Mapping[str, Sequence[Reader]] | None = None) -> None:
    """Write the manifest of a new directory: of all files in it that belong to a model.

    Args:
        folder: The directory.
        readers: As in `write_manifest`.
    """
    write_manifest(folder, model_files_since(folder, {}), readers)


def model_files_since(folder: str | Path, before: dict[str, FileStamp]) -> list[str]:
    """Return the files of a model that were written since `file_stamps` was called; others are not ours.

    Of a model on the Hub other files are not downloaded, so its manifest must not name them.

    Args:
        folder: The directory.
        before: What `file_stamps` returned then; nothing for a new directory.
    """
    written = [name for name, stamp in file_stamps(folder).items() if before.get(name) != stamp]
    return [name for name in written if any(fnmatch(name, pattern) for pattern in MODEL_FILES)]


def file_digests(folder: str | Path, pattern: str) -> dict[str, str]:
    """Return the digests of files of a directory. Those in its manifest are believed, and other files are read.

    Args:
        folder: The directory, whose files were compared with its manifest.
        pattern: Which files, such as "*.safetensors".

    Raises:
        ValueError: If the manifest is damaged, or of a newer version.
    """
    names = sorted(path.name for path in Path(folder).glob(pattern))
    recorded = read_manifest(folder) or {}
    new = [name for name in names if name not in recorded]
    entries = {**recorded, **_entries(Path(folder), new)}
    return {name: entries[name]["digest"] for name in names}


def read_manifest(folder: str | Path) -> dict[str, dict[str, Any]] | None:
    """Read the manifest of a directory.

    Args:
        folder: The directory.

    Returns:
        Size and digest of each file by its name, or None if there is no manifest: an older version wrote it.

    Raises:
        ValueError: If the manifest is damaged, or of a newer version.
    """
    path = Path(folder) / MANIFEST_FILE
    if not path.exists():
        return None
    try:
        if not path.is_file() or path.stat().st_size > _MAX_BYTES:
            raise ValueError("it is no regular file, or too long")
        payload = json.loads(path.read_text(encoding="utf-8"))
        form, files = payload["format"], payload["files"]
        if form == FORMAT:
            if payload["digest"] != _digest_of_entries(files):
                raise ValueError("its digest does not match its entries")
            return {
                _checked_name(name): {"size": int(e["size"]), "digest": str(e["digest"])} for name, e in files.items()
            }
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"is damaged ({' '.join(str(error).split())[:200]})") from error
    raise ValueError(f"has format {form!r}, and this nxm_hf reads {FORMAT}; install a newer nxm-hf")


def changed_files(
    folder: str | Path, names: Iterable[str] | None = None, readers: Mapping[str, Sequence[Reader]] | None = None
) -> dict[str, str]:
    """Compare the files of a directory with its manifest. Files that were added later are not looked at.

    If a save was stopped while it put its files in place, they are put there first.

    Args:
        folder: The directory.
        names: Look at these files only; by default at all that are recorded.
        readers: By name of a file, the functions to call with its blocks. A file of another size is not read.

    Returns:
        For each file that differs what is wrong with it, such as "is missing". Empty if there is no manifest.
    """
    folder = Path(folder)
    finish_replacing(folder)
    try:
        recorded = read_manifest(folder) or {}
    except ValueError as error:
        return {MANIFEST_FILE: str(error)}
    if names is not None:
        recorded = {name: recorded[name] for name in names if name in recorded}
    problems = {name: problem for name, entry in recorded.items() if (problem := _wrong_size(folder / name, entry))}
    same_size = [name for name in recorded if name not in problems]
    others = [(readers or {}).get(name, ()) for name in same_size]
    digests = _digests([(folder / name, recorded[name]["size"]) for name in same_size], others)
    problems |= {
        name: "has changed since it was saved"
        for name, digest in zip(same_size, digests, strict=True)
        if digest != recorded[name]["digest"]
    }
    return {name: problems[name] for name in recorded if name in problems}


def check_unchanged(folder: str | Path, advice: str) -> None:
    """Raise if a file of a directory differs from its manifest.

    Args:
        folder: The directory. One without a manifest passes.
        advice: What to do, as a sentence.

    Raises:
        ValueError: If a file differs. All are named.
    """
    if problems := changed_files(folder):
        named = "; ".join(f"{name} {problem}" for name, problem in problems.items())
        raise ValueError(f"{folder} is not as it was saved: {named}. {advice}")


def _names(folder: Path) -> list[str]:
    """Return the names of all files to record."""
    names = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", *_OTHER_FOLDERS))]
        inner = PurePosixPath(Path(root).relative_to(folder).as_posix())
        names += [str(inner / name) for name in files if not name.startswith(".") and name not in _LEFT_OUT]
    return sorted(name for name in names if is_inside(name))


def _entries(
    folder: Path, names: list[str], readers: Mapping[str, Sequence[Reader]] | None = None
) -> dict[str, dict[str, Any]]:
    files = [(folder / name, (folder / name).stat().st_size) for name in names]
    digests = _digests(files, [(readers or {}).get(name, ()) for name in names])
    return {
        name: {"size": size, "digest": digest} for name, (_, size), digest in zip(names, files, digests, strict=True)
    }


def _write(folder: Path, entries: dict[str, dict[str, Any]]) -> None:
    """Write a manifest beside the old one, wait for the disk, and put it in its place."""
    payload = {"format": FORMAT, "nxm_version": __version__, "digest": _digest_of_entries(entries), "files": entries}
    write_text(folder / MANIFEST_FILE, json.dumps(payload, indent=1) + "\n")


def _digest_of_entries(entries: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _checked_name(name: str) -> str:
    """Return a name that leads to a file inside the directory; raise ValueError for any other."""
    if not is_inside(name):
        raise ValueError(f"it names {name[:100]!r}, which is no file inside the directory")
    return name


def _wrong_size(path: Path, entry: dict[str, Any]) -> str | None:
    if not path.is_file():
        return "is no regular file" if path.exists() else "is missing"
    size = path.stat().st_size
    return None if size == entry["size"] else f"has {size:,} bytes instead of {entry['size']:,}"


def _digests(files: list[tuple[Path, int]], readers: list[Sequence[Reader]]) -> list[str]:
    """Return the digest of each file of so many bytes, and call its readers with its blocks."""
    digests = [FileDigest(size) for _, size in files]
    read_in_blocks((path, size, (own, *more)) for (path, size), own, more in zip(files, digests, readers, strict=True))
    return [digest.hexdigest() for digest in digests]
