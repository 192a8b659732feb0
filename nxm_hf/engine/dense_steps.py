"""Dense steps: during a step, the optimizer trains dense weights instead of the weights that the model computes with.

This saves two copies: the dense weight into the model's weight before the step, and back after it.
"""

from torch import Tensor
from torch.optim import Optimizer

from nxm_hf.engine.adamw import AdamW
from nxm_hf.engine.zero_updates import only_hooks_of_one


class DenseSteps:
    """Puts dense weights into the parameter groups of an optimizer before a step, and takes them out after it.

    The moments are moved to the dense weights, and back after the step. Only optimizers of torch are used in this way,
    because they read their groups at each step. Other optimizers may keep their own lists of parameters.

    Args:
        optimizer: The optimizer.
    """

    def __init__(self, optimizer: Optimizer):
        self._optimizer = optimizer
        self._pairs: dict[int, tuple[Tensor, Tensor]] = {}  # the id of a model's weight -> it, and its dense weight
        self._inside = False

    def ask(self, weight: Tensor, dense: Tensor) -> bool:
        """Let the next step train a dense weight. Return False if it cannot; then the caller has to copy it.

        Args:
            weight: A parameter of the optimizer.
            dense: The dense weight to train in its place.
        """
        kind = type(self._optimizer)
        fits = (
            (kind is AdamW or f"{kind.__module__}.".startswith("torch.optim."))
            and only_hooks_of_one(self._optimizer)
            and (dense.shape, dense.stride(), dense.dtype) == (weight.shape, weight.stride(), weight.dtype)
        )
        if fits:
            self._pairs[id(weight)] = weight, dense
        return fits

    def trains(self, weight: Tensor) -> bool:
        """Return True if the last step trained a dense weight in place of this one.

        Args:
            weight: A parameter of the optimizer.
        """
        return id(weight) in self._pairs

    def dense_of(self, weight: Tensor) -> Tensor | None:
        """Return the dense weight that the next step trains in place of this one, or None.

        Args:
            weight: A parameter of the optimizer.
        """
        pair = self._pairs.get(id(weight))
        return None if pair is None else pair[1]

    def begin(self) -> None:
        """Put the dense weights in, with the gradients of the model's weights."""
        if not self._pairs:
            return
        for weight, dense in self._pairs.values():
            dense.grad = weight.grad
        self._inside = True
        self._exchange({id(weight): dense for weight, dense in self._pairs.values()})

    def end(self) -> None:
        """Take the dense weights out again, if they are in the optimizer."""
        if not self._inside:
            return
        self._exchange({id(dense): weight for weight, dense in self._pairs.values()})
        self._inside = False
        for _, dense in self._pairs.values():
            dense.grad = None

    def forget(self) -> None:
        """Take the dense weights out, and train none in the next step. Also drop masks that still wait for a step."""
        self.end()
        self._pairs = {}
        if isinstance(self._optimizer, AdamW):
            self._optimizer.forget_masks()

    def _exchange(self, others: dict[int, Tensor]) -> None:
        for group in self._optimizer.param_groups:
            group["params"][:] = [others.get(id(each), each) for each in group["params"]]
        state = self._optimizer.state
        moments = {others.get(id(each), each): value for each, value in state.items()}
        state.clear()
        state.update(moments)  # in the order in which they were
