"""The walk: through a model block by block, each met with what the blocks before it give as they are by then."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from nxm_hf.pruning.calibration import Batch
from nxm_hf.pruning.call_graph import Trace
from nxm_hf.pruning.input_statistics import Gathering

Step = Callable[[int, int, partial], Any]  # (number of the call, number of the block, its forward) -> what it gives


class _Reached(BaseException):
    """The block that a pass was for is done. No Exception, so that no model catches it."""


class BlockReplay:
    """Passes through a model, one for each block, over all batches.

    A pass begins at the model's own entrance, so masks, positions and cross-attention are what the family makes them;
    but a block that is final is not computed again: what it gave is kept, on the CPU, and answers in its place. A pass
    computes the block before, which has just become final, and its own, and stops there; so all passes together cost
    two forwards of the model. Of what blocks gave, only that is kept which later blocks are made of.

    Where a model gives something else with answers in place of blocks (they talk past their outputs, or draw lots),
    nothing is kept, and each pass computes all blocks before its own.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Batch], blocks: Sequence[nn.Module]):
        self.batches = len(batches)
        self.two_stacks = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
        self._model, self._batches, self._blocks = model, batches, blocks
        self._device = next(model.parameters()).device
        trace = Trace()
        with torch.enable_grad():
            self._run(batches[0], trace.step)
        self._calls, self._last_use = trace.calls, trace.last_use
        self._kept: list[dict[int, Any]] = [{} for _ in batches]
        self._known = 0  # calls below this one are kept
        self.keeps = all(self._answers_do(block, trace.given) for block in dict.fromkeys(self._calls))

    @property
    def order(self) -> list[int]:
        """The blocks as the model calls them; those that it does not call come last."""
        return list(dict.fromkeys([*self._calls, *range(len(self._blocks))]))

    @torch.no_grad()
    def gather(self, block: int, gathering: Gathering) -> None:
        """See what enters the layers of this block in all batches; the blocks before it must be final."""
        mine = self._calls_of(block)
        if not mine:
            return
        with gathering.listening():
            for batch, kept in zip(self._batches, self._kept, strict=True):
                gathering.begin(batch)
                self._run(batch, partial(self._step, mine, kept, gathering))
                self._forget(kept, mine[0])
        self._known = mine[0] if self.keeps else 0

    def _step(self, mine: list[int], kept: dict[int, Any], gathering: Gathering, call: int, block: int, compute) -> Any:
        """A call in the pass for a block, whose own calls are `mine`: answered, or computed and perhaps kept."""
        if call >= len(self._calls) or self._calls[call] != block:
            raise ValueError(
                f"{type(self._model).__name__} calls its blocks in another order in some batches; calibration needs "
                "one order. Give batches that are alike."
            )
        if call < self._known:
            return self._on_device(kept[call])
        output = compute()
        if call < mine[0] and self.keeps:
            kept[call] = tree_map_only(Tensor, lambda tensor: tensor.to("cpu", copy=True), output)
        if call in mine:
            gathering.end_call()
        if call == mine[-1]:
            raise _Reached
        return output

    def _run(self, batch: Batch, step: Step) -> None:
        """Call the model, with `step` in the place of the forward of each block."""
        known = inspect.signature(self._model.forward).parameters
        plain = {"use_cache": False} if "use_cache" in known else {}
        with _in_place_of_blocks(self._blocks, step), suppress(_Reached):
            self._model(**{**plain, **self._on_device(batch, copy=False)})

    def _on_device(self, values: Any, copy: bool = True) -> Any:
        """Tensors where the model is; copies, as a model may change in place what its blocks gave."""
        return tree_map_only(Tensor, lambda tensor: tensor.to(self._device, copy=copy), values)

    def _calls_of(self, block: int) -> list[int]:
        return [call for call, called in enumerate(self._calls) if called == block]

    # -- what is kept ------------------------------------------------------------------------------------------------

    def _forget(self, kept: dict[int, Any], first: int) -> None:
        """Leave but the shape of what no call from `first` on is made of."""
        for call in kept:
            if self._last_use[call] < first:
                kept[call] = tree_map_only(Tensor, _hollow, kept[call])

    @torch.no_grad()
    def _answers_do(self, block: int, given: Sequence[Any]) -> bool:
        """Whether a block gives what it gave, when all before it are answered with what would then be kept."""
        first = self._calls.index(block)
        answers = dict(enumerate(given[:first]))
        self._forget(answers, first)
        found = []

        def step(call: int, block: int, compute: partial) -> Any:
            if call in answers:
                return self._on_device(answers[call])
            found.append(compute())
            raise _Reached

        self._run(self._batches[0], step)
        return _alike(found[0], given[first])


@contextmanager
def _in_place_of_blocks(blocks: Sequence[nn.Module], step: Step) -> Iterator[None]:
    """Meanwhile a block that is called asks `step`, with the number of the call and what it would have computed."""
    calls = iter(range(10**9))

    def stand_in(number: int, forward: Callable) -> Callable:
        @wraps(forward)
        def ask(*args: Any, **kwargs: Any) -> Any:
            return step(next(calls), number, partial(forward, *args, **kwargs))

        return ask

    before = [vars(block).get("forward") for block in blocks]
    try:
        for number, block in enumerate(blocks):
            block.forward = stand_in(number, block.forward)
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            vars(block).pop("forward", None)
            if own is not None:
                block.forward = own


def _hollow(tensor: Tensor) -> Tensor:
    """Zeros of the same shape that take no memory."""
    return tensor.new_zeros(()).expand(tensor.shape)


def _alike(one: Any, other: Any) -> bool:
    """Whether two outputs are the same but for rounding."""
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return all(_near(a, b) for a, b in pairs if isinstance(a, Tensor) and a.is_floating_point())


def _near(one: Tensor, other: Tensor) -> bool:
    one, other = one.double().nan_to_num(), other.double().nan_to_num()
    return bool((one - other).norm() <= 1e-3 * other.norm())
