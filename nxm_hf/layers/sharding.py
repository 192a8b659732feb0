"""Sharded weights: the part of each weight in this process under FSDP2, and the whole weight.

FSDP2 (`fully_shard`) cuts a weight into runs of rows, one for each process. A group of an N:M pattern lies along a row,
so each process can compute its part of the mask alone. With hybrid sharding (HSDP), several sets of processes share the
weights in this way. All sets hold the same values. A stack of expert matrices is cut between experts.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate, Shard

from nxm_hf.layers.find import Layer
from nxm_hf.layers.modules import is_transposed

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Shards:
    """The processes that share the weights of a model, and their exchanges.

    Args:
        model: The model that FSDP2 has sharded, with its wrappers.
        mesh: The processes, in one dimension. With hybrid sharding these are the processes of one set.
        replicas: With hybrid sharding, the processes that hold the same part, one from each set.
    """

    model: nn.Module = field(repr=False, compare=False)
    mesh: DeviceMesh
    replicas: DeviceMesh | None = None

    @classmethod
    def of(cls, model: nn.Module) -> "Shards | None":
        """Return the shards of a model, or None if its weights are whole.

        Args:
            model: The model, after `fully_shard` if it is to be sharded.

        Raises:
            ValueError: If the weights are distributed in another way than by FSDP2.
        """
        reshard(model)
        spread = [parameter for parameter in model.parameters() if isinstance(parameter, DTensor)]
        if not spread:
            return None
        meshes = list(dict.fromkeys(parameter.device_mesh for parameter in spread))
        by_fsdp = any(isinstance(module, FSDPModule) for module in model.modules()) and all(map(_is_of_fsdp, spread))
        if len(meshes) > 1 or not by_fsdp:
            shown = ", ".join(str(dict(zip(m.mesh_dim_names or (), m.shape, strict=False)) or m.shape) for m in meshes)
            raise ValueError(
                f"The weights are spread over a mesh of {shown}, and only FSDP2 is supported, over all processes or as "
                "hybrid sharding; leave out tensor parallelism, or use DDP (torchrun)."
            )
        return cls(model, _set_of(meshes[0]), _replicas_of(meshes[0]))

    @property
    def processes(self) -> int:
        """Return the number of processes that share each weight."""
        return self.mesh.size()

    @property
    def rank(self) -> int:
        """Return the number of this process among them."""
        return self.mesh.get_local_rank()

    def matrix(self, layer: Layer) -> Tensor:
        """Return this process's part of a weight as a matrix, with its gradient as `.grad`.

        Args:
            layer: The layer.

        Returns:
            A view of the part, which may have no rows. It shares memory with the layer.
        """
        if not isinstance(layer.weight, DTensor):  # a forward pass has gathered it
            reshard(self.model)
        weight = layer.weight
        view = layer.matrix(local(weight)).detach()
        view.grad = None if weight.grad is None else layer.matrix(local(weight.grad))
        return view

    def total(self, numbers: Tensor) -> Tensor:
        """Add up numbers over the processes. Every process calls this.

        Args:
            numbers: The numbers of this process.

        Returns:
            The sums, as a new tensor on the same device.
        """
        sums = numbers.to(self.mesh.device_type, copy=True)
        dist.all_reduce(sums, group=self.mesh.get_group())
        return sums.to(numbers.device)

    def largest(self, number: Tensor) -> Tensor:
        """Return the largest of the numbers of all processes. Every process calls this.

        Args:
            number: The number of this process.
        """
        most = number.to(self.mesh.device_type, copy=True)
        dist.all_reduce(most, op=dist.ReduceOp.MAX, group=self.mesh.get_group())
        return most.to(number.device)

    def of_each(self, numbers: Tensor) -> Tensor:
        """Return the numbers of every process, stacked. Every process calls this.

        Args:
            numbers: The numbers of this process.
        """
        numbers = numbers.contiguous()
        here = numbers.to(self.mesh.device_type)
        each = [torch.empty_like(here) for _ in range(self.processes)]
        dist.all_gather(each, here, group=self.mesh.get_group())
        return torch.stack(each).to(numbers.device)

    def whole(self, layer: Layer, part: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """Return the matrix that the processes hold parts of. Every process calls this.

        Args:
            layer: The layer.
            part: This process's part of a matrix of the layer, such as its mask.
            shape: The shape of the matrix; by default that of the layer.

        Returns:
            The matrix [out, in].
        """
        (rows, columns), part = shape or layer.shape, part.contiguous()
        if not layer.holds_experts:
            return self._gathered(part, torch.Size((rows, columns)), int(is_cut_by_inputs(layer)))
        experts = len(layer.weight)
        if not is_cut_by_inputs(layer):
            stack = torch.Size((experts, rows // experts, columns))
            return self._gathered(part.view(-1, *stack[1:]), stack, 0).view(rows, columns)
        stack = torch.Size((experts, columns // experts, rows))
        return self._gathered(part.t().contiguous().view(-1, *stack[1:]), stack, 0).view(columns, rows).t()

    def _gathered(self, part: Tensor, shape: torch.Size, dimension: int) -> Tensor:
        """Gather a tensor that torch has cut along a dimension."""
        spread = DTensor.from_local(
            part.view(torch.uint8) if part.dtype == torch.bool else part,  # gloo cannot gather bool
            self.mesh,
            [Shard(dimension)],
            shape=shape,
            stride=torch.empty(shape, device="meta").stride(),
        )
        return spread.full_tensor().view(part.dtype)

    def part_of_bias(self, bias: Tensor) -> Tensor:
        """Return this process's part of a bias.

        Args:
            bias: The whole bias.
        """
        return bias.narrow(0, *_span(part_sizes(len(bias), self.processes), self.rank))

    def solve_part(self, layer: Layer, whole: Tensor, tile: int, solve: Callable[[Tensor], Tensor]) -> Tensor:
        """Return this process's part of a mask. Only the tiles that overlap the part are solved.

        Args:
            layer: The layer.
            whole: The scores [out, in].
            tile: Rows, or columns, of a tile.
            solve: Return the mask of a run of whole tiles.
        """
        dimension = int(is_cut_by_inputs(layer))
        begin, size = self._span(layer, whole.shape[dimension])
        first, last = begin // tile * tile, ceil((begin + size) / tile) * tile
        return solve(whole.narrow(dimension, first, last - first)).narrow(dimension, begin - first, size)

    def part(self, layer: Layer, whole: Tensor) -> Tensor:
        """Return this process's part of a matrix.

        Args:
            layer: The layer.
            whole: A matrix [out, in] of the layer, such as its mask.
        """
        dimension = int(is_cut_by_inputs(layer))
        return whole.narrow(dimension, *self._span(layer, whole.shape[dimension]))

    def _span(self, layer: Layer, size: int) -> tuple[int, int]:
        """Return the start and the number of this process's rows (or columns) of a layer's matrix."""
        return _span(_sizes_of(layer, size, self.processes), self.rank)


def part_sizes(size: int, processes: int) -> list[int]:
    """Return how many rows FSDP2 gives to each process.

    Args:
        size: The number of rows.
        processes: The number of processes.

    Example:
        >>> part_sizes(12, 3), part_sizes(5, 4)
        ([4, 4, 4], [2, 2, 1, 0])
    """
    most = ceil(size / processes)
    return [max(min(most, size - rank * most), 0) for rank in range(processes)]


def reshard(model: nn.Module) -> None:
    """Free the whole weights that forward passes have gathered. The next forward pass gathers them again.

    Args:
        model: A model. Without FSDP2 nothing is done.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def plain_class(module: M) -> type[M]:
    """Return the class that a module had before FSDP2 sharded it, which can be loaded.

    Args:
        module: The module.
    """
    return cast(type[M], next(kind for kind in type(module).__mro__ if not issubclass(kind, FSDPModule)))


@torch.no_grad()
def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor, or the tensor itself if it is not sharded.

    Args:
        tensor: A parameter, gradient or moment. The result shares its memory.
    """
    # With gradients on, `to_local` returns a view that cannot be edited in place.
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """Return a tensor gathered from all processes, or the tensor itself if it is not sharded.

    Args:
        tensor: The tensor. Every process that holds a part calls this.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    # Parts that FSDP2 has offloaded to the CPU are moved to the devices that exchange them.
    placed = DTensor.from_local(
        tensor.to_local(),
        tensor.device_mesh,
        tensor.placements,
        shape=tensor.shape,
        stride=tensor.stride(),
    )
    return placed.full_tensor()


@torch.no_grad()
def shard_like(whole: Tensor, parameter: Tensor) -> Tensor:
    """Return a tensor that is sharded as a parameter is, with the values of a whole one.

    Args:
        whole: The values, in the shape of the whole parameter.
        parameter: The parameter. If it is not sharded, the values are returned as they are.
    """
    if not isinstance(parameter, DTensor):
        return whole
    sharded = torch.empty_like(parameter, dtype=whole.dtype)  # on the device of the parts, which may be the CPU
    mesh = _set_of(parameter.device_mesh)
    local(sharded).copy_(whole.narrow(0, *_span(part_sizes(len(whole), mesh.size()), mesh.get_local_rank())))
    return sharded


def is_sharded_by_rows(tensor: Tensor) -> bool:
    """Return True if a parameter is a DTensor that is cut along its first dimension.

    Args:
        tensor: The parameter.
    """
    return isinstance(tensor, DTensor) and tensor.placements[-1] == Shard(0)


def tiles_are_whole(layer: Layer, rows: int, columns: int, processes: int) -> bool:
    """Return True if no process gets a part of a tile of the matrix [out, in].

    Args:
        layer: The layer.
        rows: Rows of a tile.
        columns: Columns of a tile.
        processes: The number of processes.
    """
    size, unit = (layer.shape[1], columns) if is_cut_by_inputs(layer) else (layer.shape[0], rows)
    return all(part % unit == 0 for part in _sizes_of(layer, size, processes))


def is_cut_by_inputs(layer: Layer) -> bool:
    """Return True if FSDP2 cuts a weight by inputs: its rows are the columns of the matrix [out, in].

    This also holds for experts that are stored transposed, because the matrix has them side by side.

    Args:
        layer: The layer.
    """
    return bool(layer.module.is_transposed) if layer.holds_experts else is_transposed(layer.module)


def _is_of_fsdp(tensor: DTensor) -> bool:
    """Return True if a parameter is sharded over the last dimension of its mesh and replicated over the others."""
    *others, last = tensor.placements
    return isinstance(last, Shard) and all(isinstance(other, Replicate) for other in others)


def _set_of(mesh: DeviceMesh) -> DeviceMesh:
    """Return the processes that share one copy of the weights: the last of one or two mesh dimensions."""
    return mesh if mesh.ndim == 1 else mesh[mesh.mesh_dim_names[1]]  # type: ignore[index]  # FSDP2 needs the names


def _replicas_of(mesh: DeviceMesh) -> DeviceMesh | None:
    """Return the processes that hold the same part, one from each set: the first of two mesh dimensions."""
    return None if mesh.ndim == 1 else mesh[mesh.mesh_dim_names[0]]  # type: ignore[index]


def _sizes_of(layer: Layer, size: int, processes: int) -> list[int]:
    """Return how many rows (or columns) of a layer's matrix each process gets. Experts are not divided."""
    units = len(layer.weight) if layer.holds_experts else size
    return [count * (size // units) for count in part_sizes(units, processes)]


def _span(sizes: list[int], rank: int) -> tuple[int, int]:
    """Return the start and the size of a process's part."""
    return sum(sizes[:rank]), sizes[rank]
