"""Tracing: which blocks a model calls in what order, and which calls are made of what earlier ones gave."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only


class Trace:
    """A record of one forward pass of a model whose blocks hand their calls to `step`.

    What a block gives goes on as a leaf of autograd's graph, so that the graph of what enters a later call tells
    which calls it is made of. Blocks themselves are computed without a graph.
    """

    def __init__(self) -> None:
        self.calls: list[int] = []  # the block of each
        self.given: list[Any] = []  # what each gave
        self.last_use: list[float] = []  # the last call that is made of what each gave; -1 where there is none
        self._leaves: dict[int, tuple[int, Tensor]] = {}

    def step(self, call: int, block: int, compute: partial) -> Any:
        """Note a call, and compute it."""
        for used in self._made_of(tree_leaves((compute.args, compute.keywords))):
            self.last_use[used] = max(self.last_use[used], call)
        with torch.no_grad():
            output = compute()
        self.calls.append(block)
        self.given.append(tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), output))
        self.last_use.append(-1)
        return tree_map_only(Tensor, lambda tensor: self._leaf(tensor, call), output)

    def _leaf(self, tensor: Tensor, call: int) -> Tensor:
        if not tensor.is_floating_point():
            self.last_use[call] = float("inf")  # autograd does not follow whole numbers
            return tensor
        leaf = tensor.detach().requires_grad_()
        self._leaves[id(leaf)] = call, leaf
        return leaf.clone()  # a leaf itself could not be changed in place

    def _made_of(self, values: list[Any]) -> Iterator[int]:
        """The calls whose outputs these tensors are made of."""
        waiting = [value.grad_fn for value in values if isinstance(value, Tensor) and value.grad_fn is not None]
        seen = set()
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            found = self._leaves.get(id(getattr(node, "variable", None)))
            if found is not None:
                yield found[0]
            waiting += [earlier for earlier, _ in node.next_functions]
