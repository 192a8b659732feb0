"""Write the weight files of a directory anew into another: the same files, with other tensors in them."""

import json
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from nxm_hf.config.hub import write_json
from nxm_hf.storage.weight_files import INDEX, WeightFiles
from nxm_hf.storage.weight_writer import Entry, write_tensors


def write_shards(
    files: WeightFiles, folder: Path, entries: Callable[[str], list[Entry]], read: Callable[[str], Tensor]
) -> None:
    """Write a file for each file of the source, with the tensors that `entries` names, and an index if it has one.

    Files of a variant get the usual names, as `save_pretrained` would give them to the model that is loaded from them.

    Args:
        files: The open files of the source.
        folder: The directory to write into.
        entries: Returns the tensors to write for a tensor of the source, given its name there.
        read: Returns the tensor of a name that `entries` gave. It is called once for each.
    """
    weight_map: dict[str, str] = {}
    size = 0
    for shard, names in files.shards.items():
        written = [entry for name in names for entry in entries(name)]
        new = shard if files.variant is None else shard.replace(f"model.{files.variant}", "model", 1)
        if written:
            write_tensors(folder / new, written, read, files.metadata(shard))
            weight_map |= {entry.name: new for entry in written}
            size += sum(entry.nbytes for entry in written)
    if files.index is not None:
        metadata = json.loads(files.index.read_text(encoding="utf-8")).get("metadata", {})
        payload = {"metadata": {**metadata, "total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(folder, INDEX, payload)
