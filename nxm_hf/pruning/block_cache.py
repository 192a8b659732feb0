"""The shelf: where the finished blocks of a pruning lie, so that what was killed goes on after the last of them."""

import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nxm_hf.pruners import PrunedWeight
from nxm_hf.pruning.blockwise import Done
from nxm_hf.pruning.result import PrunedLayer
from nxm_hf.storage.state_file import by_layer, read_header, read_state, write_state

logger = logging.getLogger("nxm_hf")


class BlockShelf:
    """Finished blocks in a directory, a folder for each; what is there of another job is removed, and that is said.

    `job` is everything that the numbers depend on: the weights, the texts, the settings.
    """

    def __init__(self, folder: str | Path, job: dict[str, Any]):
        self.folder, self.job = Path(folder), job
        if self.folder.exists() and (why := self._foreign(job)):
            logger.warning("%s holds an unfinished job %s; starting anew.", self.folder, why)
            shutil.rmtree(self.folder)

    def load(self, block: str) -> Done | None:
        """The block, if it was finished whole."""
        if not (self.folder / block).is_dir():
            return None
        try:
            header, tensors = read_state(self.folder / block)
        except (OSError, ValueError) as error:
            logger.warning("Pruning %s again: %s", block, error)
            return None
        done = []
        for words in header["layers"]:
            found = by_layer(tensors)[words["name"]]
            outcome = PrunedLayer(**{**words, "shape": tuple(words["shape"])})
            done.append((outcome, PrunedWeight(found["weight"], found.get("bias"), found["weight"] != 0, outcome.note)))
        return done

    def save(self, block: str, done: Done) -> None:
        """Put a finished block there, whole or not at all."""
        if not self.folder.exists():
            write_state(self.folder, {"job": self.job}, {})
        tensors = {f"{outcome.name}/weight": pruned.weight for outcome, pruned in done}
        tensors |= {f"{outcome.name}/bias": pruned.bias for outcome, pruned in done if pruned.bias is not None}
        write_state(self.folder / block, {"layers": [asdict(outcome) for outcome, _ in done]}, tensors)

    def clear(self) -> None:
        """The job is done."""
        shutil.rmtree(self.folder)

    def _foreign(self, job: dict[str, Any]) -> str | None:
        """In what the job that lies there differs from this one."""
        try:
            there = read_header(self.folder)["job"]
        except (OSError, ValueError, KeyError):
            return "that cannot be read"
        different = [key for key in {**there, **job} if there.get(key) != job.get(key)]
        return f"with another {', '.join(different)}" if different else None
