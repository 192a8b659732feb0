"""The optimizer's step for one weight: which tensor it trains, and whether it leaves the weight's zeros."""

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

LONGEST_WAIT = 1024  # the most steps between two checks of the moments, while no check has saved a pass


class WeightStep:
    """The optimizer's step for one weight, and the passes over memory that can be saved around it.

    With a frozen mask, the pass that sets pruned entries to zero can be saved. Pruned entries stay zero in a step if
    weight, moments and gradient were zero there, and if the optimizer leaves such entries. One pass over weight and
    moments checks that they are zero. The result holds for later steps, until other code writes to one of these
    tensors. torch counts such writes (`Tensor._version`), but not those to `weight.data`. Entries that were written by
    `weight.data` are set to zero when the weights are next deployed.

    If a mask is frozen in the middle of a training, the moments of pruned entries are not zero. They are then set to
    zero, if the optimizer does not use them for kept entries.

    `nxm_hf.AdamW` masks the gradient within its step, and leaves pruned entries at zero.

    If a dense weight is kept beside the model's weight, copying it can be saved; see `DenseSteps`. `nxm_hf.AdamW` also
    pulls pruned entries of a dense weight to zero within its step.

    Args:
        optimizer: The optimizer.
        target: The weight. For a sharded weight, passes are saved only with `nxm_hf.AdamW`.
        zero_updates: The trials of the optimizer.
        dense_steps: Puts dense weights into the optimizer.
    """

    def __init__(self, optimizer: Optimizer, target: Target, zero_updates: ZeroUpdates, dense_steps: DenseSteps):
        self._optimizer, self._target = optimizer, target
        self._zero_updates, self._dense_steps = zero_updates, dense_steps
        self._seen: list[ref[Tensor]] | None = None  # the mask, weight and moments that were checked
        self._versions: list[int] = []  # the versions of these tensors after the last step
        self._leaves = self._masks = False
        self._wait = self._waited = 0

    def mask_gradient(self, mask: Tensor) -> bool:
        """Let the next step mask the gradient and leave pruned entries at +0.0. Return False if it cannot.

        Args:
            mask: True where an entry is kept.
        """
        self._masks = False
        optimizer, layer = self._optimizer, self._target.layer
        if isinstance(optimizer, AdamW) and only_hooks_of_one(optimizer):
            part = layer.weight if self._target.shards is None else local(layer.weight.detach())
            if self._lies_as(mask, part):
                self._masks = optimizer.mask_next_step(layer.weight, mask.view(part.shape))
        return self._masks

    def gradient_is_masked(self, mask: Tensor, grad: Tensor, has_no_nan: bool) -> None:
        """Record, before a step, that the gradient of pruned entries is zero, or NaN where it was infinite.

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
        """Return True, after a step, if it left pruned entries at +0.0. If False, the caller sets them to zero.

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
        """Record, after a step, that pruned entries were set to zero, and check whether their moments are zero too.

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
            if isinstance(self._optimizer, AdamW):
                self._optimizer.mask_is_final(weight)

    def train(self, dense: Tensor) -> bool:
        """Let the next step train a dense weight in place of this one. Return False if it has to be copied.

        Args:
            dense: The dense weight, as a matrix. A sharded weight is always copied.
        """
        layer = self._target.layer
        return self._target.shards is None and self._dense_steps.ask(layer.weight, layer.matrix(dense))

    def pull_dense(self, mask: Tensor, factor: float) -> bool:
        """Let the next step pull pruned entries of the dense weight that it trains. Return False if it cannot.

        Args:
            mask: True where an entry is kept.
            factor: The dense weight, times this factor, is added to the gradient of pruned entries.
        """
        optimizer, weight = self._optimizer, self._target.layer.weight
        dense = self._dense_steps.dense_of(weight)
        return (
            isinstance(optimizer, AdamW)
            and dense is not None
            and self._lies_as(mask, dense)
            and optimizer.pull_next_step(weight, dense, mask.view(weight.shape), factor)
        )

    @property
    def trains_dense(self) -> bool:
        """Return True, after a step, if the step trained the dense weight."""
        return self._dense_steps.trains(self._target.layer.weight)

    def _lies_as(self, mask: Tensor, weight: Tensor) -> bool:
        """Return whether entries of a mask and of a weight are in the same order in memory."""
        matrix = self._target.layer.matrix(weight)
        return matrix.is_contiguous() and mask.is_contiguous() and matrix.shape == mask.shape

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
    """Return a `WeightStep` for each weight of an optimizer, by name, and the `DenseSteps` that they share.

    Args:
        optimizer: The optimizer.
        targets: The weights.
    """
    zero_updates, dense_steps = ZeroUpdates(optimizer), DenseSteps(optimizer)
    steps = {target.name: WeightStep(optimizer, target, zero_updates, dense_steps) for target in targets}
    return steps, dense_steps
