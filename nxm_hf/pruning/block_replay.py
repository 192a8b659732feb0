"""Forward passes through a model up to one block at a time, with cached outputs in place of finished blocks."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial, wraps
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from nxm_hf.layers.modules import without_wrappers
from nxm_hf.layers.shard_exchange import computing_device, exchange, own_share
from nxm_hf.layers.sharding import Shards
from nxm_hf.pruning.calibration import Batch
from nxm_hf.pruning.call_graph import CallGraph
from nxm_hf.pruning.input_statistics import InputStatistics
from nxm_hf.pruning.sharded_calls import completed_calls, replaced_calls, uncompiled

# (number of the call, number of the block, its forward with its arguments) -> the output to use
CallHandler = Callable[[int, int, partial], Any]
Observer = Callable[[int, partial], Any]  # (number of the batch, a call of the block) -> the output of that call
Outputs = dict[int, Any]  # call -> what the block returned


class _PassEnds(BaseException):
    """Raised to end a forward pass early. Derived from BaseException, so that no model catches it."""


class BlockReplay:
    """Replays the forward passes of a model, one pass for each block, over all batches.

    A pass calls the model itself, so the model computes masks, positions and cross-attention. A block that is final is
    not computed again: its output was cached on the CPU and is returned in its place. A pass thus computes the block
    before, which has just become final, and its own block, and ends there. All passes together cost two forward passes
    of the model. An output is dropped after the last block that uses it.

    If cached outputs would change the result (side effects between blocks, or randomness), caching is disabled, and
    each pass computes all blocks before its own.

    If weights are sharded, each process replays its share of the batches. All run as many passes, because FSDP2 gathers
    weights in them; those with fewer batches repeat one.

    Create one with `BlockReplay.trace`, which runs the model to find these facts.

    Args:
        model: The model; if its weights are sharded, in its wrappers.
        batches: The calibration batches that this process replays.
        blocks: The blocks of the model.
        calls: The number of the block of each call in a forward pass.
        last_use: For each call, the last call that uses its output; -1 if none does.
        caches_outputs: Whether cached outputs may replace blocks.
        counted: The number of batches that count; those after them are repeated.
        total: The number of batches of all processes that count.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        blocks: Sequence[nn.Module],
        calls: Sequence[int],
        last_use: Sequence[float],
        caches_outputs: bool,
        counted: int,
        total: int,
    ):
        self.model, self.batches, self.blocks, self.counted, self.total = model, batches, blocks, counted, total
        self.calls, self.last_use, self.caches_outputs = calls, last_use, caches_outputs
        self._outputs: list[Outputs] = [{} for _ in batches]
        self._cached = 0  # the outputs of all calls below this number are cached

    @classmethod
    def trace(
        cls,
        model: nn.Module,
        batches: Sequence[Batch],
        blocks: Sequence[nn.Module],
        shards: Shards | None = None,
    ) -> "BlockReplay":
        """Run the model on the first batch, to learn its calls and whether cached outputs can replace blocks.

        Args:
            model: The model, without wrappers.
            batches: The calibration batches of all processes; at least one.
            blocks: The blocks of the model.
            shards: The processes that share the weights; None if they are whole.

        Returns:
            A replay that has computed no block yet.
        """
        model = model if shards is None else shards.model
        graph = CallGraph()
        with torch.enable_grad():
            _run(model, batches[0], blocks, graph.record)
        caches_outputs = all(
            _cache_reproduces(model, batches[0], blocks, graph, block) for block in dict.fromkeys(graph.calls)
        )
        counted = total = len(batches)
        if shards is not None:
            own = own_share(shards, batches)
            counts, cache = zip(*exchange(shards, (len(own), caches_outputs)), strict=True)
            counted, caches_outputs = len(own), all(cache)
            batches = [*own, *[batches[0]] * (max(counts) - counted)]
        return cls(model, batches, blocks, graph.calls, graph.last_use, caches_outputs, counted, total)

    @property
    def order(self) -> list[int]:
        """Return the numbers of the blocks in the order of their calls; blocks that are never called come last."""
        return list(dict.fromkeys([*self.calls, *range(len(self.blocks))]))

    def twin(self) -> "BlockReplay":
        """Return a replay of the same passes that has computed no block yet."""
        facts = self.calls, self.last_use, self.caches_outputs, self.counted, self.total
        return BlockReplay(self.model, self.batches, self.blocks, *facts)

    @torch.no_grad()
    def collect(
        self, block: int, statistics: InputStatistics, observe: Observer | None = None, final: bool = False
    ) -> None:
        """Collect the inputs of the layers of one block over all batches.

        The blocks before it must be final, and must have been collected in the order of `order`.

        Args:
            block: The number of the block.
            statistics: The statistics of its layers, which are updated.
            observe: Computes the calls of this block; by default, they are just computed.
            final: Whether the block itself is final, so that its outputs are cached in this pass already.

        Raises:
            ValueError: If the model calls its blocks in another order than in the first batch.
        """
        own_calls = [call for call, called in enumerate(self.calls) if called == block]
        if not own_calls:
            return
        end = own_calls[-1] + 1 if final else own_calls[0]  # the outputs of all calls before it are cached
        with statistics.listening():
            for number, (batch, outputs) in enumerate(zip(self.batches, self._outputs, strict=True)):
                statistics.begin_batch(batch, counts=number < self.counted)
                own = partial(observe, number) if observe else None
                _run(self.model, batch, self.blocks, partial(self._replay, own_calls, end, outputs, statistics, own))
                _drop_unused(outputs, self.last_use, end)
        self._cached = end if self.caches_outputs else 0

    def _replay(
        self,
        own_calls: list[int],
        end: int,
        outputs: Outputs,
        statistics: InputStatistics,
        observe: Callable[[partial], Any] | None,
        call: int,
        block: int,
        compute: partial,
    ) -> Any:
        """Handle a call in the pass for the block that is called at `own_calls`."""
        if call >= len(self.calls) or self.calls[call] != block:
            name = type(without_wrappers(self.model)).__name__
            raise ValueError(
                f"{name} calls its blocks in another order in some batches; calibration needs one order. Give batches "
                "that are alike."
            )
        if call < self._cached:
            return _to_device_of(self.model, outputs[call])
        output = observe(compute) if observe and call in own_calls else compute()
        if call < end and self.caches_outputs:  # copied, as the model may change the output in place
            outputs[call] = tree_map_only(Tensor, lambda tensor: tensor.to("cpu", copy=True), output)
        if call in own_calls:
            statistics.end_call()
        if call == own_calls[-1]:
            raise _PassEnds
        return output


def _cache_reproduces(
    model: nn.Module, batch: Batch, blocks: Sequence[nn.Module], graph: CallGraph, block: int
) -> bool:
    """Return whether a block's output stays the same when cached outputs replace all blocks before it."""
    first_call = graph.calls.index(block)
    cached: Outputs = dict(enumerate(graph.outputs[:first_call]))
    _drop_unused(cached, graph.last_use, first_call)
    computed = []

    def handle(call: int, block: int, compute: partial) -> Any:
        if call in cached:
            return _to_device_of(model, cached[call])
        computed.append(compute())
        raise _PassEnds

    with torch.no_grad():
        _run(model, batch, blocks, handle)
    return _close(computed[0], graph.outputs[first_call])


def _run(model: nn.Module, batch: Batch, blocks: Sequence[nn.Module], handler: CallHandler) -> None:
    """Call the model with a batch, and the handler in place of the forward of each block."""
    accepted: Mapping[str, Any] = inspect.signature(without_wrappers(model).forward).parameters
    options = {"use_cache": False} if "use_cache" in accepted else {}
    handled = replaced_calls(blocks, _handled_by(handler))
    with uncompiled(model), handled, suppress(_PassEnds), completed_calls(model, blocks):
        model(**{**options, **_to_device_of(model, batch, copy=False)})


def _handled_by(handler: CallHandler) -> Callable[[int, Callable], Callable]:
    """Return a function that replaces the computation of a block by a call of the handler."""
    calls = count()

    def handled(number: int, forward: Callable) -> Callable:
        @wraps(forward)
        def call(*args: Any, **kwargs: Any) -> Any:
            return handler(next(calls), number, partial(forward, *args, **kwargs))

        return call

    return handled


def _to_device_of(model: nn.Module, values: Any, copy: bool = True) -> Any:
    """Move tensors to the model's device. They are copied, as a model may change a block's output in place."""
    device = computing_device(next(model.parameters()))
    return tree_map_only(Tensor, lambda tensor: tensor.to(device, copy=copy), values)


def _drop_unused(outputs: Outputs, last_use: Sequence[float], call: int) -> None:
    """Reduce outputs that no call from `call` on uses to their shapes, in place."""
    for earlier in outputs:
        if last_use[earlier] < call:
            outputs[earlier] = tree_map_only(Tensor, _without_values, outputs[earlier])


def _without_values(tensor: Tensor) -> Tensor:
    """Return zeros of the same shape that share one element of memory."""
    return tensor.new_zeros(()).expand(tensor.shape)


def _close(output: Any, other: Any) -> bool:
    """Return whether two outputs are equal but for rounding."""
    pairs = zip(tree_leaves(output), tree_leaves(other), strict=True)
    return all(_close_tensors(a, b) for a, b in pairs if isinstance(a, Tensor) and a.is_floating_point())


def _close_tensors(tensor: Tensor, other: Tensor) -> bool:
    tensor, other = tensor.double().nan_to_num(), other.double().nan_to_num()
    return bool((tensor - other).norm() <= 1e-3 * other.norm())
