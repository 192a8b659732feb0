"""Checkpoints: which are whole, and which is the newest of those."""

import json
import logging
import re
import zipfile
from contextlib import suppress
from pathlib import Path

from nxm_hf.config.config import CONFIG_FILE
from nxm_hf.storage.model_files import WeightFiles
from nxm_hf.storage.state_file import STATE_FILE, read_header

logger = logging.getLogger("nxm_hf")
LAST_WRITTEN = "trainer_state.json"  # the Trainer writes it last, so without it a checkpoint is not whole


def is_checkpoint(folder: str | Path | None) -> bool:
    """Whether this is where a Trainer puts a checkpoint."""
    return folder is not None and re.fullmatch(r"checkpoint-\d+", Path(folder).name) is not None


def begin_checkpoint(folder: str | Path) -> None:
    """Before a checkpoint is written over an older one: make it count as not whole until it is."""
    (Path(folder) / LAST_WRITTEN).unlink(missing_ok=True)


def drop_unsaved(folder: str | Path) -> None:
    """Remove what was written for a checkpoint that the Trainer then did not save."""
    for name in (STATE_FILE, CONFIG_FILE, "README.md"):
        (Path(folder) / name).unlink(missing_ok=True)
    with suppress(OSError):  # something else stands in it: that stays
        Path(folder).rmdir()


def missing_parts(folder: str | Path) -> list[str]:
    """What a checkpoint lacks to be resumed from, as far as can be told without loading it."""
    folder = Path(folder)
    found = [name for name in ("optimizer.pt", "scheduler.pt") if not zipfile.is_zipfile(folder / name)]
    if not any(zipfile.is_zipfile(path) for path in folder.glob("rng_state*.pth")):
        found.append("rng_state.pth")
    needed = [CONFIG_FILE, LAST_WRITTEN]
    if (folder / "config.json").exists():  # a bare nn.Module has none
        needed.append("config.json")
    found += [name for name in needed if not _is_json(folder / name)]
    for read in (lambda: WeightFiles(folder).__enter__().__exit__(), lambda: read_header(folder)):
        try:
            read()
        except (OSError, ValueError) as error:
            found.append(str(error).rstrip("."))
    return found


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def newest_complete(output_dir: str | Path) -> str:
    """The newest checkpoint that is whole; says which newer ones it passed over, and why."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if is_checkpoint(path) and path.is_dir()]
    passed = []
    for folder in sorted(folders, key=lambda path: -int(path.name.removeprefix("checkpoint-"))):
        missing = missing_parts(folder)
        if not missing:
            if passed:
                logger.warning("Resuming from %s; passed over, as they are not whole: %s.", folder, "; ".join(passed))
            return str(folder)
        passed.append(f"{folder.name} ({', '.join(missing)})")
    raise ValueError(
        f"{output_dir} holds no whole checkpoint to resume from"
        + (f"; not whole are {'; '.join(passed)}. " if passed else ". ")
        + "Train without resume_from_checkpoint, or name a checkpoint elsewhere."
    )
