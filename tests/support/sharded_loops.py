"""Custom loops on sharded weights: models, losses, and a training of a few steps."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.debug import CommDebugMode

from nxm_hf import Engine, NxMConfig, attach
from nxm_hf.layers.modules import find_blocks
from nxm_hf.layers.sharding import local
from tests.support.model_types import MIXTURES
from tests.support.models import make_model
from tests.support.training import eventful


def config_of(recipe: str, **changes) -> NxMConfig:
    """Return a recipe with events at every second step. A measured rho hangs on the order of a sum, so admm has one."""
    config = eventful(recipe, **changes)
    return config.replace(rho=0.01, scores="fisher") if recipe == "admm" else config


class Block(nn.Module):
    """Matrices whose rows do not divide by the number of processes: some processes get fewer, or none."""

    def __init__(self):
        super().__init__()
        self.five, self.three, self.one = (nn.Linear(8, rows) for rows in (5, 3, 1))
        self.back = nn.Linear(9, 8)

    def forward(self, x):
        return x + self.back(torch.cat([self.five(x), self.three(x), self.one(x)], -1).tanh())


class Uneven(nn.Module):
    """A model of such blocks."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    """Return the loss of a batch that is the same in all processes, so that sharding changes no bit of a gradient."""
    generator = torch.Generator().manual_seed(step)
    if isinstance(model, Uneven):
        return model(torch.randn(4, 8, generator=generator)).square().mean()
    ids = torch.randint(0, 50, (2, 8), generator=generator)
    return model(input_ids=ids, labels=ids).loss


def loop(
    model: nn.Module,
    config: NxMConfig,
    shard: bool,
    state=None,
    steps: int = 12,
    mesh: DeviceMesh | None = None,
    batches: Sequence[int] = (0,),
    of: int = 1,
    total: int = 12,
    **policies: Any,
) -> tuple[nn.Module, Engine, list]:
    """Train in a custom loop of 12 steps; return the model, the engine and the communications counted in each step.

    Args:
        model: The model.
        config: What to prune and how.
        shard: Shard it first.
        state: The state of an engine to go on from.
        steps: The number of steps to do, of `total`.
        total: The number of steps of the whole training.
        mesh: The processes to shard over; by default all.
        batches: The batches of a step that this process takes, one after the other.
        of: The number of batches of a step that all processes take together.
        policies: How to shard, as `fully_shard` takes it.
    """
    if shard:
        for _, block in list(find_blocks(model)):
            fully_shard(block, mesh=mesh, **policies)
        fully_shard(model, mesh=mesh, **policies)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    engine, counts = attach(model, optimizer, config, total_steps=total), []
    if state is not None:
        engine.load_state_dict(state)
    for step in range(steps):
        for batch in batches:
            if shard:
                model.set_requires_gradient_sync(batch == batches[-1])
            (loss_of(model, of * step + batch) / len(batches)).backward()
        with CommDebugMode() as communication:
            optimizer.step()
        counts.append(communication.get_total_counts())
        optimizer.zero_grad()
    return model, engine, counts


def bytes_of(model: nn.Module, engine: Engine) -> dict[str, int]:
    """Return the bytes that this process holds of weights, moments and matrices of the state."""
    moments = [t for state in engine.optimizer.state.values() for name, t in state.items() if name != "step"]
    matrices = [t for state in engine._states.values() for t in state.values() if t.ndim == 2]
    held = {"weights": list(model.parameters()), "moments": moments, "state": matrices}
    return {name: sum(local(t.detach()).nbytes for t in tensors) for name, tensors in held.items()}


def make_mixture(name: str) -> nn.Module:
    """Return a mixture of 5 experts: some processes of four get two of them, one gets one, and one gets none."""
    kind = next(kind for kind in MIXTURES if kind.name == name)
    return replace(kind, config={**kind.config, "num_local_experts": 5}).model(0)


MAKE = {"uneven": Uneven, "gpt2": lambda: make_model("gpt2")}
MIXTURE = {name: partial(make_mixture, name) for name in ("mixtral", "gpt_oss")}  # [out, in] and [in, out]
# A recipe, a pattern, a model, and the most communications of a weight in a refresh of four processes. The weights of
# "uneven" are counted in histograms, as large ones are, and all others are gathered.
ACROSS = [
    ("ste", "unstructured:0.3", "uneven", 2),
    ("admm", "unstructured:0.3", "uneven", 4),  # the mask before, and that after
    ("sr-ste", "block:4:0.5", "uneven", 2),
    ("admm", "block:2x4:0.3", "llama", 2),
    ("admm", "block:16x4:0.5", "llama", 2),  # 8 of 32 rows cut a block
    ("ste", "2:4-transposable", "llama", 0),
    ("admm", "8:16-transposable", "llama", 2),
    ("gradual", "16:32", "gpt2", 1),  # 8 of 32 inputs cut a group
    ("set", "2:4", "uneven", 4),  # how many are kept, and which stay, of equal ones among them
    ("rigl", "unstructured:0.3", "gpt2", 5),
    ("admm", "2:4", "mixtral", 0),
    ("ste", "2:4-transposable", "gpt_oss", 0),
    ("rigl", "block:4x4:0.5", "gpt_oss", 5),
]
