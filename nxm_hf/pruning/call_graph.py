"""The call graph of a model's blocks: in which order a model calls them, and which calls use which outputs."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only


class CallGraph:
    """A record of one forward pass, filled by `record` in place of the forward of each block.

    Blocks are computed without a graph, and each output becomes a leaf of autograd's graph. The graph of the inputs
    of a later call then tells which outputs they are made of.

    Args:
        calls: The number of the block of each call.
        outputs: The output of each call.
        last_use: For each call, the last call that uses its output; -1 if none does.
    """

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.outputs: list[Any] = []
        self.last_use: list[float] = []
        self._leaves: dict[int, tuple[int, Tensor]] = {}

    def record(self, call: int, block: int, compute: partial) -> Any:
        """Record a call and compute it.

        Args:
            call: The number of the call.
            block: The number of the block that is called.
            compute: The block's forward with its arguments.

        Returns:
            The block's output, with floating-point tensors replaced by leaves.
        """
        for used in self._sources(tree_leaves((compute.args, compute.keywords))):
            self.last_use[used] = max(self.last_use[used], call)
        with torch.no_grad():
            output = compute()
        self.calls.append(block)
        self.outputs.append(tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), output))
        self.last_use.append(-1)
        return tree_map_only(Tensor, lambda tensor: self._leaf(tensor, call), output)

    def _leaf(self, tensor: Tensor, call: int) -> Tensor:
        if not tensor.is_floating_point():
            self.last_use[call] = float("inf")  # autograd does not follow integers, so assume the output stays in use
            return tensor
        leaf = tensor.detach().requires_grad_()
        self._leaves[id(leaf)] = call, leaf
        return leaf.clone()  # autograd forbids in-place changes of a leaf, and a model may make some

    def _sources(self, values: list[Any]) -> Iterator[int]:
        """Yield the calls whose outputs these values are computed from."""
        waiting = [value.grad_fn for value in values if isinstance(value, Tensor) and value.grad_fn is not None]
        visited = set()
        while waiting:
            node = waiting.pop()
            if node in visited:
                continue
            visited.add(node)
            leaf = self._leaves.get(id(getattr(node, "variable", None)))  # only AccumulateGrad nodes have a variable
            if leaf is not None:
                yield leaf[0]
            waiting += [earlier for earlier, _ in node.next_functions if earlier is not None]
