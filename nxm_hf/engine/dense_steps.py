"""Dense steps: within a step, the optimizer trains dense weights in place of those that the model computes with.

The dense weight is then not copied into the model's weight before the step, and back after it.
"""

from torch import Tensor
from torch.optim import Optimizer

from nxm_hf.engine.adamw import AdamW
from nxm_hf.engine.zero_updates import only_hooks_of_one


class DenseSteps:
    """Puts dense weights into the parameter groups of an optimizer before a step, and takes them out after it.

    Moments move along, and go back to the model's weights. Optimizers of torch read their groups at each step; others
    may keep lists of their own, so they are not asked.

    Args:
        optimizer: The optimizer.
    """

    def __init__(self, optimizer: Optimizer):
        self._optimizer = optimizer
        self._pairs: dict[int, tuple[Tensor, Tensor]] = {}  # the id of a model's weight -> it, and its dense weight
        self._inside = False

    def ask(self, weight: Tensor, dense: Tensor) -> bool:
        """Have the next step train a dense weight. Return False if it cannot be; then it has to be copied.

        Args:
            weight: A parameter of the optimizer.
            dense: What to train in its place.
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

    def begin(self) -> None:
        """Put the dense weights in, with the gradients of the model's weights."""
        if not self._pairs:
            return
        for weight, dense in self._pairs.values():
            dense.grad = weight.grad
        self._inside = True
        self._exchange({id(weight): dense for weight, dense in self._pairs.values()})

    def end(self) -> None:
        """Take the dense weights out, if they are in."""
        if not self._inside:
            return
        self._exchange({id(dense): weight for weight, dense in self._pairs.values()})
        self._inside = False
        for _, dense in self._pairs.values():
            dense.grad = None

    def forget(self) -> None:
        """Take the dense weights out, and ask for none in the next step. Masks that no step has used are dropped."""
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
