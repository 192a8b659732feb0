"""Compare the weights of layers in the files that were just written with those in memory, as the bytes come."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from nxm_hf.layers.find import Layer
from nxm_hf.layers.modules import plain_name
from nxm_hf.layers.sharding import local
from nxm_hf.solvers.equal_words import comparison
from nxm_hf.storage.file_blocks import Block, read_in_blocks
from nxm_hf.storage.tensor_places import Place, tensor_places
from nxm_hf.storage.weight_files import WeightFiles
from nxm_hf.storage.weight_writer import type_name


class OtherParameter(NamedTuple):
    """A parameter of a model that is no weight of a layer to prune, or that a state dict gives.

    Args:
        name: Its name in the state dict of the model without wrappers.
        weight: The parameter.
    """

    name: str
    weight: Tensor

    @property
    def key(self) -> str:
        """Return its name, as layers have it."""
        return self.name


def other_parameters(model: nn.Module, layers: Sequence[Layer]) -> list[OtherParameter]:
    """Return the parameters of a model, without the weights of some layers.

    Args:
        model: The model.
        layers: The layers.
    """
    left_out = {layer.key for layer in layers}
    named = [(plain_name(name), parameter) for name, parameter in model.named_parameters()]
    return [OtherParameter(name, parameter) for name, parameter in named if name not in left_out]


def given_parameters(model: nn.Module, state_dict: Mapping[str, Tensor]) -> list[OtherParameter]:
    """Return the parameters of a model as a state dict gives them.

    Args:
        model: The model.
        state_dict: The state dict. Only whole tensors of it count.
    """
    # All names of a parameter: a state dict of another type holds a copy of a tied weight under each.
    own = {plain_name(name) for name, _ in model.named_parameters(remove_duplicate=False)}
    named = [(plain_name(name), tensor) for name, tensor in state_dict.items()]
    return [OtherParameter(name, tensor.detach()) for name, tensor in named if name in own and local(tensor) is tensor]


class WrittenWeight(NamedTuple):
    """Describe a weight that must stand in a file as it is in memory.

    Args:
        name: The name of its layer.
        begin: Where its bytes begin in the file.
        expected: Its bytes in memory.
    """

    name: str
    begin: int
    expected: np.ndarray

    @property
    def end(self) -> int:
        """Return where its bytes end in the file."""
        return self.begin + self.expected.size


class FileComparison:
    """Compare the weights of a file, whose blocks it is called with. Blocks may come in any order, from any thread.

    Args:
        weights: The weights, none of which overlap.
    """

    def __init__(self, weights: Sequence[WrittenWeight]):
        self._weights = sorted(weights, key=lambda weight: weight.begin)
        self._ends = [weight.end for weight in self._weights]
        # Bytes that are as in memory, by weight. Threads append to lists, which needs no lock.
        self._equal: dict[str, list[int]] = {weight.name: [] for weight in weights}
        self._compare = comparison()

    def __call__(self, block: Block) -> None:
        """Compare what stands in a block.

        Args:
            block: A block of the file.
        """
        for weight in self._weights[bisect_right(self._ends, block.begin) :]:
            begin, end = max(weight.begin, block.begin), min(weight.end, block.end)
            if begin >= end:
                return
            written, expected = block.bytes(begin, end), weight.expected[begin - weight.begin : end - weight.begin]
            if self._are_equal(written, expected):
                self._equal[weight.name].append(end - begin)

    def _are_equal(self, a: np.ndarray, b: np.ndarray) -> bool:
        """Compare bytes, in words of 64 bits where they allow it."""
        words = a.size // 8 * 8
        return bool(self._compare(a[:words].view(np.uint64), b[:words].view(np.uint64))) and np.array_equal(
            a[words:], b[words:]
        )

    def equal(self) -> set[str]:
        """Return the names of the layers all of whose bytes have come, and were as in memory."""
        return {weight.name for weight in self._weights if sum(self._equal[weight.name]) == weight.expected.size}

    def differing(self) -> set[str]:
        """Return the names of the others."""
        return {weight.name for weight in self._weights} - self.equal()


class WrittenWeights:
    """Compare the weights of layers that stand in the files of a directory as they are in memory.

    Args:
        folder: The directory.
        layers: The layers and other parameters, whose weights are whole.

    Raises:
        FileNotFoundError: If the directory holds no safetensors files.
        ValueError: If a file cannot be read.
    """

    def __init__(self, folder: str | Path, layers: Sequence[Layer | OtherParameter]):
        self.by_file: dict[str, list[FileComparison]] = {}  # of each file, by its name in the folder
        self._folder = Path(folder)
        with WeightFiles(folder) as files:
            paths = [files.folder / shard for shard in files.shards]
        places = {name: (path, place) for path in paths for name, place in tensor_places(path).items()}
        weights: dict[Path, list[WrittenWeight]] = {}
        for layer in layers:
            path, place = places.get(layer.key, (None, None))
            if path is not None and place is not None and _is_plain(layer, place):
                flat = layer.weight.view(-1).view(torch.uint8).numpy()
                weights.setdefault(path, []).append(WrittenWeight(layer.name, place.begin, flat))
        for path, of_file in weights.items():
            self.by_file[path.relative_to(folder).as_posix()] = [FileComparison(of_file)]

    def read(self) -> None:
        """Read the files, for who does not read them for another purpose."""
        paths = {self._folder / name: readers for name, readers in self.by_file.items()}
        read_in_blocks((path, path.stat().st_size, readers) for path, readers in paths.items())

    def equal(self) -> set[str]:
        """Return the names of the layers that were found in the files as they are in memory, once these were read."""
        return {name for readers in self.by_file.values() for reader in readers for name in reader.equal()}

    def differing(self) -> set[str]:
        """Return the names of those that stand in the files under their own names, with another bit."""
        return {name for readers in self.by_file.values() for reader in readers for name in reader.differing()}


def _is_plain(layer: Layer | OtherParameter, place: Place) -> bool:
    """Return True if the bytes of a weight in memory are those that a file should hold."""
    weight, entry = layer.weight, place.entry
    here = weight.device.type == "cpu" and weight.is_contiguous()
    return here and (entry.dtype, entry.shape) == (type_name(weight.dtype), tuple(weight.shape))
