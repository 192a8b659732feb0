"""A small network of blocks and plain training loops, for the tests of methods, recipes and engine."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from nxm_hf import Engine, NxMConfig, attach, recipes
from nxm_hf.patterns import parse

WIDTH = 8
TOTAL = 12  # steps of most trainings


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
        """The layers that are pruned."""
        return [linear for block in self.blocks for linear in (block.up, block.down)]


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=1e-3),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.02),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.1),
}


def adamw(model: nn.Module, **kwargs) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), **{"lr": 0.02, "weight_decay": 0.1, **kwargs})


# Implementations of an optimizer's step that differ in what hooks around it see.
IMPLEMENTATIONS = {
    "fused": lambda model: adamw(model, fused=True),
    "foreach": lambda model: adamw(model, foreach=True),
    "adamw": lambda model: adamw(model, fused=False, foreach=False),
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
}


def loss_at(step: int, model: nn.Module) -> Tensor:
    """Return the loss of the batch of this step; the same batch for the same step."""
    noise = torch.Generator().manual_seed(1000 + step)
    dtype = next(model.parameters()).dtype
    x, y = torch.randn(16, WIDTH, generator=noise, dtype=dtype), torch.randn(16, 2, generator=noise, dtype=dtype)
    return nn.functional.mse_loss(model(x), y)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, begin: int, end: int) -> Iterator[int]:
    """Train in a plain loop from step `begin` to step `end`; yield the steps done."""
    for step in range(begin, end):
        optimizer.zero_grad()
        loss_at(step, model).backward()
        optimizer.step()
        yield step + 1


def trained(sparsity, steps: int = TOTAL, optimizer: Callable = adamw, total: int | None = None) -> tuple[Toy, Engine]:
    """Return a toy after some steps of an attached training, and its engine."""
    model = Toy()
    stepper = optimizer(model)
    engine = attach(model, stepper, sparsity, total_steps=total or steps)
    for _ in train(model, stepper, 0, steps):
        pass
    return model, engine


def trained_plainly(steps: int = TOTAL, optimizer: Callable = adamw) -> Toy:
    """Return a toy after plain training."""
    model = Toy()
    for _ in train(model, optimizer(model), 0, steps):
        pass
    return model


def short(recipe: str, pattern: str = "2:4", **kwargs) -> NxMConfig:
    """Return the config of a recipe whose events happen within a dozen steps."""
    known = recipes.settings(recipe)
    settings = {name: 3 for name in ("steps", "every") if name in known}
    return NxMConfig(recipe, pattern, {**settings, **kwargs.pop("settings", {})}, **kwargs)


def short_or_skip(recipe: str, pattern: str) -> NxMConfig:
    """Return `short`, or skip the test if the recipe cannot make its ladder of patterns of this one."""
    try:
        return short(recipe, pattern)
    except ValueError as error:
        assert recipe in ("structure-decay", "gradual") and pattern in str(error)
        pytest.skip(str(error))


def save_run(model: nn.Module, optimizer: torch.optim.Optimizer, engine: Engine) -> tuple[bytes, dict, bytes]:
    """Return the three state dicts of a run, those of model and engine as bytes of safetensors."""
    return save(model.state_dict()), copy.deepcopy(optimizer.state_dict()), save(engine.state_dict())


def load_run(
    saved: tuple[bytes, dict, bytes], sparsity: NxMConfig, optimizer: Callable = adamw, total: int = TOTAL
) -> tuple[Toy, torch.optim.Optimizer, Engine]:
    """Return model, optimizer and engine with the state of `save_run`; they began with other weights."""
    model = Toy(seed=1)
    model.load_state_dict(load(saved[0]))
    stepper = optimizer(model)
    engine = attach(model, stepper, sparsity, total_steps=total)
    stepper.load_state_dict(saved[1])
    engine.load_state_dict(load(saved[2]))
    return model, stepper, engine


def weights(model: nn.Module) -> list[Tensor]:
    """Copy the pruned weights of a toy."""
    return [linear.weight.detach().clone() for linear in model.linears]


def all_tensors(model: nn.Module, engine: Engine) -> dict[str, Tensor]:
    """Copy all tensors that a step could change, by name."""
    return {name: tensor.clone() for name, tensor in {**model.state_dict(), **engine.tensors()}.items()}


def assert_sparse(model: nn.Module, pattern: str = "2:4") -> None:
    """Raise unless the pruned weights of a toy hold the pattern, and no zero is negative."""
    expected = parse(pattern)
    for weight in weights(model):
        assert expected.violations(weight) == 0 and not has_negative_zeros(weight)
        assert int(weight.count_nonzero()) <= expected.kept(weight.shape)


def bits(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor, in which -0.0 differs from 0.0 and a NaN equals itself."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def same(tensors, others) -> bool:
    """Return True if tensors, or the tensors of two dicts, are equal bit for bit."""
    if isinstance(tensors, dict):
        return tensors.keys() == others.keys() and same(tensors.values(), (others[name] for name in tensors))
    return all(torch.equal(bits(tensor), bits(other)) for tensor, other in zip(tensors, others, strict=True))


def has_negative_zeros(tensor: Tensor) -> bool:
    return bool((torch.signbit(tensor) & (tensor == 0)).any())
