"""Checkpoints: tell complete ones from torn ones, and find the newest."""

import json
import logging
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from nxm_hf.config import CONFIG_FILE
from nxm_hf.storage.adapter_files import check_adapter_weights, read_adapter
from nxm_hf.storage.manifest import MANIFEST_FILE, changed_files, remove_manifest, write_manifest
from nxm_hf.storage.state_file import STATE_FILE, read_header
from nxm_hf.storage.weight_files import WeightFiles

logger = logging.getLogger("nxm_hf")
LAST_WRITTEN = "trainer_state.json"  # Trainer writes it last; only our manifest comes after it
RUN_FILE = "nxm_run.json"  # of an output directory: what its training was
HAS_MANIFEST = "manifest"  # in the header of a state: its checkpoint is complete only with a manifest
PROCESSES = "processes"  # in the header of a state: its checkpoint is complete only with so many random states
NOT_READ = ("training_args.bin",)  # by a training that resumes


def is_checkpoint(folder: str | Path | None) -> bool:
    """Return True if Trainer writes a checkpoint into a directory of this name.

    Args:
        folder: The directory, or None.
    """
    return folder is not None and re.fullmatch(r"checkpoint-\d+", Path(folder).name) is not None


def begin_checkpoint(folder: str | Path) -> None:
    """Mark a checkpoint as not complete, before it is written over an older one.

    Args:
        folder: The checkpoint.
    """
    (Path(folder) / LAST_WRITTEN).unlink(missing_ok=True)
    remove_manifest(folder)


def complete_checkpoint(
    folder: str | Path, names: Iterable[str] | None = None, expected: Mapping[str, str] | None = None
) -> None:
    """Write the manifest of a checkpoint, after all other files of it and before older checkpoints are deleted.

    Trainer deletes the checkpoints with the oldest times of change. So this one is made the newest by time too, in case
    the clock was set back.

    Args:
        folder: The checkpoint.
        names: The files to record; by default all.
        expected: As in `write_manifest`.

    Raises:
        RuntimeError: If a file has another digest than expected. The checkpoint stays incomplete then.
    """
    folder = Path(folder)
    write_manifest(folder, names, expected=expected)
    others = [path for path in folder.parent.glob("checkpoint-*") if path.is_dir() and path != folder]
    latest = max((path.stat().st_mtime_ns for path in others), default=0)
    if latest >= folder.stat().st_mtime_ns:
        os.utime(folder, ns=(latest, latest + 2 * 10**9))  # Trainer takes differences below one second for none


def drop_unsaved(folder: str | Path) -> None:
    """Remove the files that were written for a checkpoint which Trainer then did not save.

    Args:
        folder: The checkpoint. Other files in it stay.
    """
    for name in (STATE_FILE, CONFIG_FILE, "README.md"):
        (Path(folder) / name).unlink(missing_ok=True)
    with suppress(OSError):  # the directory is not empty: it stays
        Path(folder).rmdir()


def missing_parts(folder: str | Path, by_fsdp: bool = False) -> list[str]:
    """List what a checkpoint lacks to be resumed from, without loading it.

    Its files are compared with its manifest first, so that no damaged file is opened.

    Args:
        folder: The checkpoint.
        by_fsdp: True for a plain Trainer that shards weights. It reads other files of the model and the optimizer.

    Returns:
        Names of files, or descriptions of what is wrong with them; empty if the checkpoint is complete.
    """
    folder = Path(folder)
    if changed := [f"{name} {what}" for name, what in changed_files(folder).items() if name not in NOT_READ]:
        return changed
    pickled = ("pytorch_model_fsdp.bin", "optimizer.bin") if by_fsdp else ("optimizer.pt",)
    missing = [name for name in (*pickled, "scheduler.pt") if not _is_zip(folder / name)]
    if not any(map(_is_zip, folder.glob("rng_state*.pth"))):
        missing.append("rng_state.pth")
    needed = [CONFIG_FILE, LAST_WRITTEN]
    if (folder / "config.json").exists():  # a bare nn.Module has none
        needed.append("config.json")
    missing += [name for name in needed if not _is_json(folder / name)]
    missing += [problem for check in (_open_weights, _check_state) if (problem := _problem(check, folder))]
    return missing


def newest_complete(output_dir: str | Path) -> str:
    """Find the newest complete checkpoint. Newer ones that are not complete are named in a warning.

    Args:
        output_dir: The output directory of a training.

    Returns:
        The checkpoint.

    Raises:
        ValueError: If no checkpoint is complete.
    """
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if is_checkpoint(path) and path.is_dir()]
    skipped: list[str] = []
    for folder in sorted(folders, key=lambda path: -int(path.name.removeprefix("checkpoint-"))):
        missing = missing_parts(folder)
        if not missing:
            if skipped:
                logger.warning(
                    "Resuming from %s; skipped, because incomplete or changed: %s.", folder, "; ".join(skipped)
                )
            return str(folder)
        skipped.append(f"{folder.name} ({', '.join(missing)})")
    raise ValueError(
        f"No valid checkpoint found in output directory ({output_dir})"
        + (f"; incomplete are {'; '.join(skipped)}. " if skipped else ". ")
        + "Train without resume_from_checkpoint, or name a checkpoint elsewhere."
    )


def checkpoint_to_resume(which: str | bool, output_dir: str | Path) -> str:
    """Return the checkpoint that `resume_from_checkpoint` means, if it is complete.

    Args:
        which: A checkpoint, or True for the newest complete one.
        output_dir: The output directory of the training.

    Returns:
        The checkpoint.

    Raises:
        ValueError: If there is no such checkpoint, or it is not complete.
    """
    if which is True:
        return newest_complete(output_dir)
    folder = str(which)
    if not Path(folder).is_dir():
        raise ValueError(
            f"Can't find a valid checkpoint at {folder}: there is no such directory. Write "
            "resume_from_checkpoint=True, which takes the newest complete checkpoint."
        )
    if missing := missing_parts(folder):
        raise ValueError(
            f"{which} is not a complete checkpoint: {', '.join(missing)}. Resume with resume_from_checkpoint=True, "
            "which takes the newest complete one."
        )
    return folder


def _open_weights(folder: Path) -> None:
    if read_adapter(folder) is not None:
        return check_adapter_weights(folder)
    with WeightFiles(folder):
        pass


def _check_state(folder: Path) -> None:
    header = read_header(folder)
    if header.get(HAS_MANIFEST) and not (folder / MANIFEST_FILE).exists():
        raise ValueError(f"{MANIFEST_FILE} is missing")
    processes, states = header.get(PROCESSES, 1), len(list(folder.glob("rng_state*.pth")))
    if isinstance(processes, int) and processes > states:  # a process was killed before it wrote its own
        raise ValueError(f"the random states of {processes - states} of {processes} processes are missing")


def _problem(check: Callable[[Path], object], folder: Path) -> str | None:
    """Return the error that a check of a checkpoint raises, as a clause without a full stop."""
    try:
        check(folder)
    except (OSError, ValueError) as error:
        return str(error).rstrip(".")
    return None


def _is_zip(path: Path) -> bool:
    return path.is_file() and zipfile.is_zipfile(path)  # do not wait for a pipe


def _is_json(path: Path) -> bool:
    try:
        return path.is_file() and json.loads(path.read_text(encoding="utf-8")) is not None
    except (OSError, ValueError, RecursionError):
        return False
