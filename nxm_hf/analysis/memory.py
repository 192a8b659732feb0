"""Memory of a training: the bytes that one process holds of weights, gradients, moments and the recipe's state."""

from dataclasses import dataclass

import torch
from torch import nn

from nxm_hf.config import NxMConfig
from nxm_hf.layers.plan import Plan
from nxm_hf.layers.sharding import part_sizes
from nxm_hf.methods import Clock
from nxm_hf.patterns import Pattern

FP32 = 4  # bytes of a weight: training needs fp32
_STEPS = 40  # steps of the training that is looked through


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that one process holds all through a training. Activations and gathered blocks come on top.

    Args:
        weights: Bytes of all weights.
        gradients: Bytes of their gradients.
        moments: Bytes of the optimizer's moments.
        state: Bytes of the recipe's state, such as masks and dense weights, at most.
        deployed: Bytes of a copy of the pruned weights, the most that evaluations and saves hold. On a CPU they hold
            only entries that differ.
    """

    weights: int
    gradients: int
    moments: int
    state: int
    deployed: int

    @property
    def total(self) -> int:
        """Return the sum of all."""
        return self.weights + self.gradients + self.moments + self.state + self.deployed


def training_memory(model: nn.Module, config: NxMConfig | str, processes: int = 1, moments: int = 2) -> TrainingMemory:
    """Return the bytes that the first process holds, which has the most rows.

    Args:
        model: The model; one on the meta device is enough.
        config: What to prune and how.
        processes: The number of processes that FSDP2 shards over; 1 for DDP, where each holds everything.
        moments: The number of moments of the optimizer: 2 for Adam, 1 for SGD with momentum.

    Returns:
        The bytes, by what they are for.

    Example:
        >>> layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        >>> model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        >>> one, four = (training_memory(model, "sr-ste", processes).total for processes in (1, 4))
        >>> one / four
        4.0
    """
    plan = Plan.of(model, config := NxMConfig.from_any(config))
    held = sum(_part(parameter.shape, processes) for parameter in plan.whole.parameters())
    pruned = [(_part(target.layer.weight.shape, processes), target) for target in plan.targets]
    bytes_of = {pattern: state_bytes(config, pattern) for pattern in {target.pattern for target in plan.targets}}
    return TrainingMemory(
        weights=FP32 * held,
        gradients=FP32 * held,
        moments=FP32 * moments * held,
        state=sum(entries * bytes_of[target.pattern] for entries, target in pruned),
        deployed=FP32 * sum(entries for entries, _ in pruned),
    )


def state_bytes(config: NxMConfig, pattern: Pattern) -> int:
    """Return the most bytes that a recipe keeps beside each entry of a pruned weight.

    Args:
        config: What to prune and how.
        pattern: The pattern of the weight.

    Example:
        >>> from nxm_hf.patterns import parse
        >>> [state_bytes(NxMConfig(recipe), parse("2:4")) for recipe in ("asp", "sr-ste", "admm")]
        [1, 5, 4]
    """
    method, weight = config.method(pattern), torch.zeros(_fitting(config, pattern))
    states = [
        method.init(weight.clone(), Clock(step, total=_STEPS, epoch=max(_STEPS // 4, 1))) for step in range(_STEPS)
    ]
    return max(sum(tensor.element_size() for tensor in state.values() if tensor.ndim == 2) for state in states)


def _fitting(config: NxMConfig, pattern: Pattern) -> tuple[int, int]:
    """Return a small shape that holds every pattern on the way to the final one."""
    for size in range(1, 257):
        try:
            for stage in config.stages(pattern):
                stage.check((size, size))
        except ValueError:
            continue
        return size, size
    raise ValueError(f"No square of at most 256 rows holds {pattern} and all patterns before it; choose a smaller M.")


def _part(shape: torch.Size, processes: int) -> int:
    """Return how many entries of a parameter the first process holds."""
    return part_sizes(shape[0], processes)[0] * shape[1:].numel() if shape else 1
