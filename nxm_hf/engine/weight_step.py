"""The optimizer's step as one weight sees it: which tensor it trains, and whether it leaves the weight's zeros."""

from collections.abc import Iterable
from typing import Any
from weakref import ref

from torch import Tensor
from torch.optim import Optimizer

from nxm_hf.engine.adamw import AdamW
from nxm_hf.engine.dense_steps import DenseSteps
from nxm_hf.engine.optimizer_state import Moments, keeps_moments
from nxm_hf.engine.zero_updates import ZeroUpdates, moments_are_zero, only_hooks_of_one
from nxm_hf.layers.plan import Target
from nxm_hf.layers.sharding import local

LONGEST_WAIT = 1024  # steps from one look at the moments to the next, as long as no step has gained by one


class WeightStep:
    """The step of one weight, and what can be spared around it.

    With a frozen mask, the pass that sets pruned entries to zero is spared. They are zero after a step if they were
    before it, with zero moments and zero gradients, and if the optimizer leaves such entries. That they were is seen
    once, in a pass over weight and moments, and holds from step to step. It has to be seen anew after anybody else has
    written to one of these tensors, which torch counts (`Tensor._version`). What is written by `weight.data` it does
    not count; such entries are set to zero when the weights are next deployed.

    A mask that is frozen in the middle of a training finds moments of pruned entries that are not zero. They are set to
    zero then, if the optimizer does not use them for kept entries.

    `nxm_hf.AdamW` masks the gradient within its step, and leaves zeros.

    With a dense weight beside the model's, the copy of it is spared; see `DenseSteps`.

    Args:
        optimizer: The optimizer.
        target: The weight. Of a sharded one nothing is claimed but what `nxm_hf.AdamW` does.
        zero_updates: What is known of the optimizer.
        dense_steps: How the optimizer comes to train a dense weight.
    """

    def __init__(self, optimizer: Optimizer, target: Target, zero_updates: ZeroUpdates, dense_steps: DenseSteps):
        self._optimizer, self._target = optimizer, target
        self._zero_updates, self._dense_steps = zero_updates, dense_steps
        self._seen: list[ref[Tensor]] | None = None  # mask, weight and moments, where the zeros were seen
        self._versions: list[int] = []  # theirs after the last step
        self._leaves = self._masks = False
        self._wait = self._waited = 0

    def mask_gradient(self, mask: Tensor) -> bool:
        """Have the next step mask the gradient and leave pruned entries at +0.0. Return False if the caller has to.

        Args:
            mask: True where an entry is kept.
        """
        self._masks = False
        optimizer, layer = self._optimizer, self._target.layer
        if isinstance(optimizer, AdamW) and only_hooks_of_one(optimizer):
            part = layer.weight if self._target.shards is None else local(layer.weight.detach())
            matrix = layer.matrix(part)
            if matrix.is_contiguous() and mask.is_contiguous() and matrix.shape == mask.shape:
                self._masks = optimizer.mask_next_step(layer.weight, mask.view(part.shape))
        return self._masks

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
        masks, leaves = self._masks, self._leaves
        self._masks = self._leaves = False
        if masks and isinstance(self._optimizer, AdamW):
            return not self._optimizer.waits_with_mask(self._target.layer.weight)
        if leaves:
            self._wait = 0
            self._look(self._tensors(mask))
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
            self._look(self._tensors(mask))
        self._waited, self._wait = 0, min(max(2 * self._wait, 1), LONGEST_WAIT)

    def mask_is_final(self, mask: Tensor) -> None:
        """Set the moments of pruned entries to zero, if that changes no step of kept entries in any bit.

        Args:
            mask: True where an entry is kept; no pruned entry will ever be kept again.
        """
        weight = self._target.layer.weight
        if self._optimizer.state.get(weight) and keeps_moments(self._optimizer) and self._zero_updates.apart(weight):
            Moments(self._optimizer, self._target.layer).clear(~mask, "both")

    def train(self, dense: Tensor) -> bool:
        """Have the next step train a dense weight, not this one. Return False if it has to be copied into this one.

        Args:
            dense: The dense weight, as a matrix. A sharded weight is always copied.
        """
        layer = self._target.layer
        return self._target.shards is None and self._dense_steps.ask(layer.weight, layer.matrix(dense))

    @property
    def trains_dense(self) -> bool:
        """Return True, after a step, if it has trained the dense weight."""
        return self._dense_steps.trains(self._target.layer.weight)

    def _as_matrix(self, value: Any) -> Any:
        layer = self._target.layer
        return layer.matrix(value) if isinstance(value, Tensor) and value.shape == layer.weight.shape else value

    def _tensors(self, mask: Tensor) -> list[Tensor]:
        weight = self._target.layer.weight
        state = self._optimizer.state.get(weight, {}).values()
        return [mask, weight, *(value for value in state if isinstance(value, Tensor))]

    def _look(self, tensors: list[Tensor]) -> None:
        self._seen = [ref(tensor) for tensor in tensors]
        self._versions = [tensor._version for tensor in tensors]

    def _is_as_seen(self, mask: Tensor) -> bool:
        tensors, seen = self._tensors(mask), self._seen or []
        return (
            len(tensors) == len(seen)
            and [tensor._version for tensor in tensors] == self._versions
            and all(reference() is tensor for tensor, reference in zip(tensors, seen, strict=True))
        )


def weight_steps(optimizer: Optimizer, targets: Iterable[Target]) -> tuple[dict[str, WeightStep], DenseSteps]:
    """Return the steps of an optimizer's weights by their names, and what exchanges dense weights for all of them.

    Args:
        optimizer: The optimizer.
        targets: The weights.
    """
    zero_updates, dense_steps = ZeroUpdates(optimizer), DenseSteps(optimizer)
    steps = {target.name: WeightStep(optimizer, target, zero_updates, dense_steps) for target in targets}
    return steps, dense_steps
