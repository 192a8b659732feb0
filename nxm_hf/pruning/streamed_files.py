"""Write the weight files of a model that was pruned block by block, with two blocks in memory at a time."""

from pathlib import Path

import torch
from torch import Tensor, nn

from nxm_hf.pruning.streamed_blocks import StreamedBlocks
from nxm_hf.storage.converted_weights import ConvertedWeights
from nxm_hf.storage.shard_writer import write_shards
from nxm_hf.storage.weight_files import WeightFiles
from nxm_hf.storage.weight_writer import Entry, type_name


def write_streamed(model: nn.Module, streamed: StreamedBlocks, folder: Path) -> None:
    """Write the weights of a model, with the names of files and tensors of the directory that blocks are read from.

    Tensors of that directory that do not belong to the model are left out, as in `save_pretrained`.

    Args:
        model: The model.
        streamed: Its blocks.
        folder: The directory to write into.
    """
    with WeightFiles(streamed.folder) as files:
        tensors = _Tensors(files, model, streamed)
        write_shards(files, folder, tensors.entries, tensors.read)


class _Tensors:
    """The tensors of a model, by their names in its files."""

    def __init__(self, files: WeightFiles, model: nn.Module, streamed: StreamedBlocks):
        self._files, self._streamed = files, streamed
        self._converted = ConvertedWeights(files, model)
        self._tensors = model.state_dict(keep_vars=True)
        self._keys = {name: key for key in self._tensors for name in self._converted.names(key)}

    def entries(self, name: str) -> list[Entry]:
        """Return the tensor to write for one of the files; none if the model has no such tensor."""
        if name not in self._keys:
            return []
        return [self._files.entry(name)._replace(dtype=type_name(self._tensors[self._keys[name]].dtype))]

    @torch.no_grad()
    def read(self, name: str) -> Tensor:
        """Return a tensor to write."""
        key = self._keys[name]
        number = self._streamed.number_of(key)
        if number is not None:
            self._streamed.load(number)
        return self._converted.part(key, name, self._tensors[key].detach()).cpu()
