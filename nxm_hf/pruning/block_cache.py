"""Finished blocks of a pruning job on disk, so that a killed job continues after the last of them."""

import logging
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from nxm_hf.pruners import PrunedWeight
from nxm_hf.pruning.result import PrunedLayer, ReconstructedBlock
from nxm_hf.storage.state_file import by_layer, read_header, read_state, write_state

logger = logging.getLogger("nxm_hf")


@dataclass(frozen=True)
class PrunedBlock:
    """A finished block.

    Args:
        layers: Its pruned layers.
        vectors: The new values of its other parameters that reconstruction changed, by their names in the model.
        reconstructed: The result of reconstruction; None without it.
    """

    layers: list[tuple[PrunedLayer, PrunedWeight]]
    vectors: dict[str, Tensor] = field(default_factory=dict)
    reconstructed: ReconstructedBlock | None = None


class BlockCache:
    """A directory with a folder for each finished block.

    Args:
        folder: The directory. If it holds blocks of another job, it is deleted with a warning.
        job: Everything that the numbers depend on (the weights, the texts, the settings), as JSON.
    """

    def __init__(self, folder: str | Path, job: dict[str, Any]):
        self.folder, self.job = Path(folder), job
        if self.folder.exists() and (difference := self._difference(job)):
            logger.warning("%s holds an unfinished job %s; starting anew.", self.folder, difference)
            shutil.rmtree(self.folder)

    def load(self, block: str) -> PrunedBlock | None:
        """Read a finished block.

        Args:
            block: The name of the block.

        Returns:
            The block, or None if it is not there or damaged.
        """
        if not (self.folder / block).is_dir():
            return None
        try:
            header, tensors = read_state(self.folder / block)
        except (OSError, ValueError) as error:
            logger.warning("Pruning %s again: %s", block, error)
            return None
        layers, slots = [], by_layer(tensors)
        for payload in header["layers"]:
            layer, parts = PrunedLayer.from_dict(payload), slots[payload["name"]]
            layers.append((layer, PrunedWeight(parts["weight"], parts.get("bias"), parts["weight"] != 0, layer.note)))
        vectors = {name: parts["vector"] for name, parts in slots.items() if "vector" in parts}
        errors = header["reconstructed"]
        return PrunedBlock(layers, vectors, ReconstructedBlock.from_dict(errors) if errors else None)

    def save(self, block: str, pruned_block: PrunedBlock) -> None:
        """Write a finished block, in full or not at all.

        Args:
            block: The name of the block.
            pruned_block: The pruned block.
        """
        layers, reconstructed = pruned_block.layers, pruned_block.reconstructed
        if not self.folder.exists():
            write_state(self.folder, {"job": self.job}, {})
        tensors = {f"{layer.name}/weight": pruned.weight for layer, pruned in layers}
        tensors |= {f"{layer.name}/bias": pruned.bias for layer, pruned in layers if pruned.bias is not None}
        tensors |= {f"{name}/vector": vector for name, vector in pruned_block.vectors.items()}
        header = {
            "layers": [asdict(layer) for layer, _ in layers],
            "reconstructed": asdict(reconstructed) if reconstructed else None,
        }
        write_state(self.folder / block, header, tensors)

    def _difference(self, job: dict[str, Any]) -> str | None:
        """Return how the job in the directory differs from this one, or None if it is the same."""
        try:
            earlier = read_header(self.folder)["job"]
        except (OSError, ValueError, KeyError):
            return "that cannot be read"
        different = [key for key in {**earlier, **job} if earlier.get(key) != job.get(key)]
        return f"with another {', '.join(different)}" if different else None
