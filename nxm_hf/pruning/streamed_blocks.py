"""Read the blocks of a model from its files when they are computed, with two blocks in memory at a time."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nxm_hf.layers.modules import find_blocks
from nxm_hf.pruning.sharded_calls import replaced_calls
from nxm_hf.storage.converted_weights import ConvertedWeights
from nxm_hf.storage.weight_files import WeightFiles

IN_MEMORY = 2  # blocks at a time: a pass computes the last pruned block, and the one after it
Parameters = dict[str, nn.Parameter]  # by their keys in the state dict of the model


class StreamedBlocks:
    """Keeps the weights of a model's blocks in files. Only the last computed blocks are in memory.

    The parameters of the other blocks have the right shapes and hold NaN. Each takes the memory of one number. Tensors
    outside the blocks, or shared by several blocks, stay in memory. Make an instance with `of`.

    Args:
        model: The model.
        folder: Directory of its files.
        parameters: For each block, by its number, the parameters that are read from the files.
    """

    def __init__(self, model: nn.Module, folder: Path, parameters: Mapping[int, Parameters]):
        self.model, self.folder = model, folder
        self._parameters = parameters
        self._loaded: list[int] = []  # numbers of blocks, the last computed last
        # The memory of a dropped block, to be used again for a block of the same shapes. Allocating it anew for each
        # block is slower, and fragments the heap.
        self._free: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}
        self._finish: dict[int, Callable[[], None]] = {}

    @classmethod
    def of(
        cls, model: nn.Module, folder: Path, device: torch.device, dtype: torch.dtype | None = None
    ) -> "StreamedBlocks | None":
        """Free the weights of the blocks, and move all other tensors to a device.

        Args:
            model: The model as `from_pretrained` loads it, on the CPU. Memory that is mapped from its files is freed.
            folder: Directory of its files.
            device: The device to compute on.
            dtype: The type of the weights; by default the type of the model.

        Returns:
            The blocks; None if the files do not hold every tensor of the model as `save_pretrained` would write it.
        """
        parameters = _parameters_of_blocks(model)
        with WeightFiles(folder) as files:
            if files.packed is not None or not _holds_all(ConvertedWeights(files, model), model):
                return None
        streamed = cls(model, folder, parameters)
        inside = {id(parameter) for part in parameters.values() for parameter in part.values()}
        for parameter in model.parameters():
            kind = dtype or parameter.dtype
            parameter.data = (
                _placeholder(parameter, kind, device) if id(parameter) in inside else parameter.data.to(device, kind)
            )
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))
        return streamed

    @contextmanager
    def read_when_computed(self) -> Iterator[None]:
        """Read each block from the files when its forward is called, while the context is open."""
        modules = [module for _, module in find_blocks(self.model)]
        with replaced_calls(modules, self._reading):
            yield

    @torch.no_grad()
    def load(self, number: int) -> None:
        """Read the weights of a block into memory, unless they are there.

        Args:
            number: The number of the block.
        """
        if number in self._loaded:
            self._loaded.remove(number)
            self._loaded.append(number)
            return
        while len(self._loaded) >= IN_MEMORY:
            self._drop(self._loaded.pop(0))
        with WeightFiles(self.folder) as files:
            converted = ConvertedWeights(files, self.model)
            for key, parameter in self._parameters[number].items():
                free = self._free.get((parameter.shape, parameter.dtype))
                memory = free.pop() if free else torch.empty_like(parameter, memory_format=torch.contiguous_format)
                parameter.data = memory.copy_(converted[key])
        self._loaded.append(number)
        if number in self._finish:
            self._finish[number]()

    def holds(self, number: int) -> bool:
        """Return whether the weights of a block are in memory.

        Args:
            number: The number of the block.
        """
        return number in self._loaded

    def finished(self, number: int, write: Callable[[], None]) -> None:
        """Record that a block was pruned, so its weights differ from the files.

        Args:
            number: The number of the block.
            write: Writes the new weights into the model. It is called each time the block is read.
        """
        self._finish[number] = write

    def forget(self) -> None:
        """Free the weights of all blocks."""
        while self._loaded:
            self._drop(self._loaded.pop())
        self._free.clear()

    def number_of(self, key: str) -> int | None:
        """Return the number of the block to load before a tensor can be read; None if the tensor is in memory.

        Args:
            key: The name of the tensor in the state dict of the model.
        """
        return next((number for number, parameters in self._parameters.items() if key in parameters), None)

    def _reading(self, number: int, forward: Callable) -> Callable:
        @wraps(forward)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.load(number)
            return forward(*args, **kwargs)

        return call

    def _drop(self, number: int) -> None:
        for parameter in self._parameters[number].values():
            self._free.setdefault((parameter.shape, parameter.dtype), []).append(parameter.data)
            parameter.data = _placeholder(parameter, parameter.dtype, parameter.device)


def _parameters_of_blocks(model: nn.Module) -> dict[int, Parameters]:
    """Return the parameters of each block, without those that other modules of the model share."""
    blocks = list(find_blocks(model))
    inside = {module for _, block in blocks for module in block.modules()}
    held = [p for module in model.modules() if module not in inside for p in module.parameters(recurse=False)]
    times = Counter(id(p) for _, block in blocks for p in block.parameters())
    shared = {id(p) for p in held} | {one for one, count in times.items() if count > 1}
    return {
        number: {
            f"{name}.{key}": parameter
            for key, parameter in block.named_parameters(remove_duplicate=False)
            if id(parameter) not in shared
        }
        for number, (name, block) in enumerate(blocks)
    }


def _holds_all(converted: ConvertedWeights, model: nn.Module) -> bool:
    """Return whether files hold each tensor of a model, under its name or that of a tensor with the same memory."""
    own = model.state_dict(keep_vars=True)
    present = {id(tensor) for key, tensor in own.items() if key in converted}
    return all(id(tensor) in present for tensor in own.values())


def _placeholder(like: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor of NaN whose entries share the memory of one number. NaN makes an accidental use visible."""
    number = torch.full((), float("nan") if dtype.is_floating_point else 0, dtype=dtype, device=device)
    return number.expand(like.shape)
