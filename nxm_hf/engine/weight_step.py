"""The optimizer's step as one weight sees it: which tensor it trains, and whether it leaves the weight's zeros."""

from typing import Any
from weakref import ref

from torch import Tensor
from torch.optim import Optimizer

from nxm_hf.engine.zero_updates import ZeroUpdates, moments_are_zero
from nxm_hf.layers.plan import Target

LONGEST_WAIT = 1024  # steps from one look at the moments to the next, as long as no step has gained by one


class WeightStep:
    """Whether the pruned entries of a weight with a frozen mask are still zero after a step, without a look at them.

    They are if they were zero before it, with zero moments and zero gradients, and if the optimizer leaves such
    entries. The first is seen once, in a pass over weight and moments, and holds from step to step. It has to be seen
    anew after anybody else has written to one of these tensors, which torch counts (`Tensor._version`). It does not count
    what is written by `weight.data`; such entries are set to zero when the weights are next deployed.

    Args:
        optimizer: The optimizer.
        target: The weight. Of a sharded one nothing is claimed.
        zero_updates: What is known of the optimizer.
    """

    def __init__(self, optimizer: Optimizer, target: Target, zero_updates: ZeroUpdates):
        self._optimizer, self._target, self._zero_updates = optimizer, target, zero_updates
        self._seen: list[tuple[ref[Tensor], int]] | None = None  # tensors with zeros, as they were after the last step
        self._leaves = False
        self._wait = self._waited = 0

    def gradient_is_masked(self, mask: Tensor, grad: Tensor, has_no_nan: bool) -> None:
        """Take note, before a step, that the gradient of pruned entries is zero, or NaN where it was infinite.

        Args:
            mask: True where an entry is kept.
            grad: The gradient.
            has_no_nan: True if the gradient is known to hold no NaN.
        """
        self._leaves = (
            self._seen is not None
            and self._is_as_seen(mask)
            and self._zero_updates.of(self._target.layer.weight)
            and (has_no_nan or not bool(grad.sum().isnan()))
        )

    def leaves_zeros(self, mask: Tensor) -> bool:
        """Return True, after a step, if it has left the pruned entries at +0.0. If not, they have to be set to zero.

        Args:
            mask: True where an entry is kept.
        """
        leaves, self._leaves = self._leaves, False
        if leaves:
            self._wait = 0
            self._look(mask)
        return leaves

    def zeros_are_set(self, mask: Tensor) -> None:
        """Take note, after a step, that pruned entries were set to zero; look whether their moments are zero, too.

        Args:
            mask: True where an entry is kept.
        """
        self._leaves, self._seen = False, None
        if self._target.shards is not None:
            return
        self._waited += 1
        if self._waited < self._wait:
            return
        weight = self._target.layer.weight
        state = {name: self._as_matrix(value) for name, value in self._optimizer.state.get(weight, {}).items()}
        if moments_are_zero(state, ~mask):
            self._look(mask)
        self._waited, self._wait = 0, min(max(2 * self._wait, 1), LONGEST_WAIT)

    def _as_matrix(self, value: Any) -> Any:
        layer = self._target.layer
        return layer.matrix(value) if isinstance(value, Tensor) and value.shape == layer.weight.shape else value

    def _tensors(self, mask: Tensor) -> list[Tensor]:
        weight = self._target.layer.weight
        state = self._optimizer.state.get(weight, {}).values()
        return [mask, weight, *(value for value in state if isinstance(value, Tensor))]

    def _look(self, mask: Tensor) -> None:
        self._seen = [(ref(tensor), tensor._version) for tensor in self._tensors(mask)]

    def _is_as_seen(self, mask: Tensor) -> bool:
        tensors, seen = self._tensors(mask), self._seen or []
        return len(tensors) == len(seen) and all(
            reference() is tensor and version == tensor._version
            for tensor, (reference, version) in zip(tensors, seen, strict=True)
        )
