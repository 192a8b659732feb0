"""Straight-through estimators as papers print them: a function with a backward pass of its own."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tests.support.references import top
from tests.support.toy_training import OPTIMIZERS, Toy, train, weights


class StraightThrough(torch.autograd.Function):
    """W = D * mask forward; dL/dD = dL/dW + decay * D * (1 - mask) backward. With decay = 0 it is STE, else SR-STE."""

    @staticmethod
    def forward(ctx, dense: Tensor, decay: float) -> Tensor:
        mask = top(dense.abs(), "2:4")
        ctx.save_for_backward(dense, mask)
        ctx.decay = decay
        return dense * mask

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        dense, mask = ctx.saved_tensors
        return gradient + ctx.decay * dense * ~mask, None


class StraightThroughToy(nn.Module):
    """The toy network, which computes with masked weights and trains the dense ones."""

    def __init__(self, decay: float):
        super().__init__()
        self.toy, self.decay = Toy(dtype=torch.float64), decay

    def forward(self, x: Tensor) -> Tensor:
        return functional_call(self.toy, self.masked(), (x,))

    def masked(self) -> dict[str, Tensor]:
        """Return the masked weights of the blocks, by name."""
        names = [name for name, _ in self.toy.named_parameters() if "blocks" in name and name.endswith("weight")]
        return {name: StraightThrough.apply(self.toy.get_parameter(name), self.decay) for name in names}


def by_the_book(optimizer: str, decay: float, steps: int) -> Iterator[tuple[list[Tensor], list[Tensor], list[Tensor]]]:
    """Train in a plain loop. Yield what each step computed with, the weights after it, and their masked form."""
    model = StraightThroughToy(decay)
    stepper = OPTIMIZERS[optimizer](model.parameters())
    used = [weight.detach() for weight in model.masked().values()]
    for _ in train(model, stepper, 0, steps):
        masked = [weight.detach() for weight in model.masked().values()]
        yield used, weights(model.toy), masked
        used = masked
