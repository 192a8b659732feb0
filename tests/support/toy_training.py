"""A small network of blocks and plain training loops, for the tests of methods, recipes and engine."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from nxm_hf import Engine, NxMConfig, attach, recipes

WIDTH = 8


class Block(nn.Module):
    """A residual block of two matrices."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Toy(nn.Module):
    """Two blocks, whose four matrices are pruned, and a head, which stays dense."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32):
        super().__init__()
        torch.manual_seed(seed)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(WIDTH, 2)
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    @property
    def linears(self) -> list[nn.Linear]:
        """What is pruned."""
        return [linear for block in self.blocks for linear in (block.up, block.down)]


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=1e-3),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.02),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.1),
}


def adamw(model: nn.Module, **words) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), **{"lr": 0.02, "weight_decay": 0.1, **words})


def loss_at(step: int, model: nn.Module) -> Tensor:
    """The loss of the batch of this step; the same batch for the same step."""
    noise = torch.Generator().manual_seed(1000 + step)
    dtype = next(model.parameters()).dtype
    x, y = torch.randn(16, WIDTH, generator=noise, dtype=dtype), torch.randn(16, 2, generator=noise, dtype=dtype)
    return nn.functional.mse_loss(model(x), y)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, begin: int, end: int) -> Iterator[int]:
    """Plain training, from `begin` steps done to `end`; yields the steps done."""
    for step in range(begin, end):
        optimizer.zero_grad()
        loss_at(step, model).backward()
        optimizer.step()
        yield step + 1


def trained(sparsity, steps: int = 12, optimizer: Callable = adamw, total: int | None = None) -> tuple[Toy, Engine]:
    """A toy after some steps of an attached training."""
    model = Toy()
    stepper = optimizer(model)
    engine = attach(model, stepper, sparsity, total_steps=total or steps)
    for _ in train(model, stepper, 0, steps):
        pass
    return model, engine


def short(recipe: str, pattern: str = "2:4", **words) -> NxMConfig:
    """A recipe such that its events happen within a dozen steps."""
    known = recipes.settings(recipe)
    settings = {name: 3 for name in ("steps", "every") if name in known}
    return NxMConfig(recipe, pattern, {**settings, **words.pop("settings", {})}, **words)


def taken(recipe: str, pattern: str) -> NxMConfig:
    """`short`, if the recipe takes this pattern: a ladder of patterns cannot be made of every one."""
    try:
        return short(recipe, pattern)
    except ValueError as error:
        assert recipe in ("structure-decay", "gradual") and pattern in str(error)
        pytest.skip(str(error))


def weights(model: nn.Module) -> list[Tensor]:
    """The pruned weights of a toy, as they are now."""
    return [linear.weight.detach().clone() for linear in model.linears]


def bits(tensor: Tensor) -> Tensor:
    """The bits of a tensor, in which -0.0 is not 0.0 and a NaN is itself."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def same(ones, others) -> bool:
    """Whether tensors, or the tensors of two dicts, are equal, bit for bit."""
    if isinstance(ones, dict):
        return ones.keys() == others.keys() and same(ones.values(), (others[name] for name in ones))
    return all(torch.equal(bits(one), bits(other)) for one, other in zip(ones, others, strict=True))


def has_negative_zeros(tensor: Tensor) -> bool:
    return bool((torch.signbit(tensor) & (tensor == 0)).any())
